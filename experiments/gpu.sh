#!/bin/bash
# Measures on one GPU, within ten minutes, what experiments/speed/gpu.md lists as missing
# there: whole entries beside their peers, where LeNet's time goes, the cost model.
#
#   experiments/gpu.sh [--out DIR] [--limit SECONDS] [--slack N] [--tiny]
#                      [--only NAME ...]
#
# Each entry is a process of its own with a limit, and ends as DIR/NAME.json, whole, or
# as DIR/NAME.failed, which says why. Called again, it does what is missing. At the end
# gpu_table.py prints the table and writes all entries to DIR/gpu.json.
#
#   PYTHON        has jax and kljax's needs (default: python)
#   TORCH_PYTHON  has PyTorch (default: PYTHON); where it has none, peers are left out,
#                 and the table says so
#   --slack       how many times as long an entry may take as on a machine of its own
#   --tiny        sizes of seconds, on any device: tries the commands, measures nothing
set -u
cd "$(dirname "$0")" || exit 1
PYTHON=${PYTHON:-python}
TORCH_PYTHON=${TORCH_PYTHON:-$PYTHON}
out=../runs/gpu limit=590 slack=1 tiny="" only=""
while (($#)); do
    case $1 in
        --out) out=$2; shift 2 ;;
        --limit) limit=$2; shift 2 ;;
        --slack) slack=$2; shift 2 ;;
        --tiny) tiny=--tiny; shift ;;
        --only) shift; while (($#)) && [[ $1 != --* ]]; do only+=" $1 "; shift; done ;;
        *) echo "gpu.sh: unknown option $1; see the head of the file" >&2; exit 2 ;;
    esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
export PYTHONPATH="$PWD/..${PYTHONPATH:+:$PYTHONPATH}"
# What is compiled once is read by the next process, and by the next call.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/cache}
# A peer on the same GPU needs memory, too.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
triton=--xla_gpu_enable_triton_gemm=false
"$PYTHON" gpu_table.py "$out" --begin --torch-python "$TORCH_PYTHON" $tiny || exit 1
peers=$(cat "$out/peers") # those of PyTorch, or nothing

# entry NAME SECONDS COMMAND...: runs it, unless it is there already.
entry() {
    local name=$1 most=$(($2 * slack)) left=$((limit - SECONDS)) rc
    shift 2
    [[ -z $only || $only == *" $name "* ]] || return
    if [[ -s $out/$name.json ]]; then
        echo "$name: there already"
        return
    fi
    if ((left < 10)); then
        echo "not begun: the $limit s are over; call again" >"$out/$name.failed"
        return
    fi
    echo "$name: $((SECONDS)) s of $limit gone"
    rm -f "$out/$name.failed" "$out/.$name.part"
    timeout -k 5 $((most < left ? most : left)) "$@" --json "$out/.$name.part" \
        >"$out/$name.log" 2>&1
    rc=$?
    if ((rc == 0)) && [[ -s $out/.$name.part ]]; then
        mv "$out/.$name.part" "$out/$name.json"
    elif ((rc == 124 || rc == 137)); then
        echo "stopped after $((most < left ? most : left)) s" >"$out/$name.failed"
    else
        echo "failed ($rc): $(tail -n 1 "$out/$name.log")" >"$out/$name.failed"
    fi
}

# speed NAME SECONDS [OPTION...]: an entry of speed.py, with its peers.
speed() {
    local name=$1 most=$2
    shift 2
    entry "$name" "$most" "$PYTHON" speed.py --only "$name" --rounds 3 $tiny \
        --torch-python "$TORCH_PYTHON" --peers $peers "$@"
}

chunks="64 256 1024 4096"
[[ -z $tiny ]] || chunks="2 4"
# The least time is lost if the last ones are cut off.
XLA_FLAGS="${XLA_FLAGS:-} ${tiny:+--xla_cpu_multi_thread_eigen=false}" \
    entry chunks 60 "$PYTHON" chunks.py --chunks $chunks
# Without CUDA graphs, whose kernels a trace may not tell apart.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" \
    entry chunks-traced 40 "$PYTHON" chunks.py --chunks ${chunks% *} --rounds 2
# Its forms beside XLA's own, value for value.
layers="lenet-2 resnet20-2"
[[ -z $tiny ]] || layers="lenet-1"
entry convolution-maps 90 "$PYTHON" convolution_speed.py --layers $layers --batches 1 16 \
    --victims $([[ -z $tiny ]] && echo 64 || echo 2)
speed fl-cnn-b50 90
speed fedavg-inversion 60
speed ig-resnet20 60
# Its peers without torch.compile, which has an entry of its own below.
speed dlg-lenet-eval 90 --peers ${peers//torch-compile/}
# Products by Triton take too long to compile here (speed/gpu.md).
XLA_FLAGS="${XLA_FLAGS:-} $triton" speed ig-convnet64 90
entry cost 60 "$PYTHON" cost_check.py $tiny --rounds 3 --only dlg-lenet-eval \
    fl-lenet-b10 fl-lenet-b32 fedavg-inversion ig-resnet20
# The search for the peers' best settings is not made twice; without it, no peers.
attack="--peers"
[[ ! -s $out/dlg-lenet-eval.json ]] || attack="--peers-from $out/dlg-lenet-eval.json"
speed dlg-lenet-attack 60 --peers ${peers//torch-compile/} $attack
entry sweep-64 90 "$PYTHON" speed.py --only sweep-64 --rounds 1 $tiny --peers
entry fl-scale 60 "$PYTHON" speed.py --only fl-scale --rounds 1 $tiny --peers
for name in fedavg-inversion ig-resnet20 ig-convnet64; do
    XLA_FLAGS="${XLA_FLAGS:-} $triton" entry "layouts-$name" 60 \
        "$PYTHON" speed.py --only "layouts-$name" --rounds 2 $tiny --peers
done
if [[ $peers == *torch-compile* ]]; then
    entry dlg-lenet-eval-compiled 90 "$PYTHON" speed.py --only dlg-lenet-eval \
        --rounds 3 $tiny --torch-python "$TORCH_PYTHON" --peers torch-compile
fi
entry sweep-4096 600 "$PYTHON" speed.py --only sweep-4096 --rounds 1 $tiny --peers
"$PYTHON" gpu_table.py "$out"
