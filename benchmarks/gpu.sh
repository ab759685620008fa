#!/usr/bin/env bash
# What there is to do on a GPU, in one command: the benchmarks, then Figures 1 and 5 at full width.
#
#     benchmarks/gpu.sh OUT
#     TINY=1 benchmarks/gpu.sh OUT       to see that it runs: tiny networks, the embedded digits, no GPU needed
#     LOWER=1 benchmarks/gpu.sh OUT      to see what a GPU would be given, at full width, up to the device: none needed
#
# It ends within LIMIT seconds, and leaves benchmarks.json, the run offline/RUN with its checkpoints, figure1 and figure5
# in OUT. Figures are drawn of what there is by then, and the same command goes on with the run; PARTS=figures leaves the
# benchmarks out. At full width the run passes over CIFAR-10 1,100 times. $WSJAX_DATA_DIR says where cifar10.npz lies.
# FLAGS are XLA's; those that this machine's XLA does not know, or that break it, are left out.
set -euo pipefail

OUT=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUT}")
PARTS=${PARTS-benchmarks figures}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
EPOCHS=${EPOCHS:-200}           # of each of the two rounds
PRECISION=${PRECISION:-float32} # or bfloat16
REPEATS=${REPEATS:-3}           # pairs a benchmark
# An epoch is a loop: launched as one CUDA graph, if all that it calls is allowed in there.
FLAGS=${FLAGS---xla_gpu_enable_command_buffer=+WHILE,+CONVOLUTION --xla_gpu_enable_latency_hiding_scheduler=true}

sizes=(--dataset=cifar10 --epochs "$EPOCHS")
tiny=()
if [[ -n ${TINY:-} ]]; then
    sizes=(--dataset=digits --model=resnet18 --width=2 --num_train=128 --seeds 0 --first_epochs=2 --epochs=2)
    tiny=(--tiny)
fi
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n ${LOWER:-} ]]; then exec "$PYTHON" -m benchmarks.lowering; fi

# Whether XLA knows a flag (it ends the process if not), and a loop of convolutions runs with it.
works() {
    XLA_FLAGS=$1 JAX_ENABLE_COMPILATION_CACHE=false "$PYTHON" - >/dev/null 2>&1 <<'PYTHON'
import jax
import jax.numpy as jnp

x, kernel = jnp.ones((8, 8, 8, 8)), jnp.ones((8, 8, 3, 3))
loop = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, x: jax.lax.conv(x, kernel, (1, 1), "SAME"), x))
jax.block_until_ready(loop(3))
PYTHON
}

# Runs a command for as long as the limit leaves; that it was stopped there is no failure.
stopped=
within_limit() {
    local code=0 left=$((LIMIT - SECONDS))
    timeout "$((left > 1 ? left : 1))" "$@" || code=$?
    if ((code == 124)); then
        stopped=yes
        echo "stopped after $SECONDS s by LIMIT=$LIMIT: $*"
    else
        return "$code"
    fi
}

known=${XLA_FLAGS:-}
for flag in $FLAGS; do
    if works "$known $flag"; then known+=" $flag"; else echo "left out, since it does not work here: $flag"; fi
done
export XLA_FLAGS=$known
# A convolution in a CUDA graph that is the first thing a process does, as where all its programs come from the cache,
# fails: "No DNN support for stream" (jax 0.11.2, H200). Compiling loads cuDNN before.
if [[ $known == *+CONVOLUTION* ]]; then export JAX_ENABLE_COMPILATION_CACHE=false; fi
echo "XLA_FLAGS=$XLA_FLAGS"
mkdir -p "$OUT"

if [[ $PARTS == *benchmarks* ]]; then
    within_limit "$PYTHON" -m benchmarks --only resnet_gpu --repeats "$REPEATS" --out "$OUT/benchmarks.json" "${tiny[@]}"
fi
if [[ $PARTS == *figures* ]]; then
    within_limit "$PYTHON" experiments/offline.py "${sizes[@]}" --precision="$PRECISION" --shrink 0.1 0.3 0.6 \
        --perturb 0.01 --workdir "$OUT" --run "$PRECISION"
    for figure in figure1 figure5; do
        # A run that was stopped early has not come to all figures.
        "$PYTHON" "figures/$figure.py" "$OUT/offline/$PRECISION" --out "$OUT/$figure" || [[ -n $stopped ]]
    done
fi
