#!/bin/bash
# A shell with a background job, a pipeline and a trap.
asked=
trap 'asked=1' USR1
n=0
( while :; do sleep 0.05; done ) &
job=$!
( for i in $(seq 1 400); do echo $i; sleep 0.01; done | { last=0; while read -r i; do [ $i -eq $((last+1)) ] || exit 3; last=$i; done; [ $last -eq 400 ]; } ) &
pipe=$!
echo ready
while [ -z "$asked" ]; do n=$((n+1)); sleep 0.01; done
kill -0 $job || { echo "FAIL: the job is gone"; exit 1; }
kill $job
wait $job
[ $? -eq 143 ] || { echo "FAIL: the job ended otherwise"; exit 1; }
wait $pipe || { echo "FAIL: the pipeline lost a line"; exit 1; }
echo ok
