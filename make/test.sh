#!/bin/sh
# make/test.sh PYTHON [pytest's options]: every test. Most wait more than they compute, so several at once, one more than
# there are processors, each with one thread; then, one after the other, what must compute with all threads and what
# times whole containers.
set -u

python=$1
shift
status=0
several=$(($(nproc 2>/dev/null || echo 3) + 1))

run() {
    "$python" -m pytest -rs "$@"
    code=$?
    [ $code -eq 0 ] || [ $code -eq 5 ] || status=$code # 5: the options choose none of these
}

(
    export OMP_NUM_THREADS=1
    run -n $several --maxprocesses 4 --dist worksteal \
        -m 'not all_threads' tests/unit tests/contract tests/chaos tests/docs tests/launch "$@"
    exit $status
) || status=$?
run -m all_threads tests/chaos/test_exactness.py "$@"
run tests/container tests/relay "$@"
exit $status
