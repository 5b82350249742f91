# The module where a branch to a missing landing pad is an oops.

control=/sys/kernel/debug/fentry/control

fail() {
    echo "ibt: error: $*"
}

dmesg | grep -q 'CET detected: Indirect Branch Tracking enabled' ||
    fail "this kernel does not enforce landing pads"
# The CPU that is emulated has returns that a mitigation replaces.
insmod /fentry.ko plain_returns=1 || fail "the module cannot be loaded"
echo 'select 1000' >$control
grep ' [a-d]' /sys/kernel/tracing/available_filter_functions_addrs >/sys/kernel/debug/fentry/functions
functions=$(sed -n 's/^functions=\([0-9]*\).*/\1/p' /sys/kernel/debug/fentry/status)
[ "$functions" = 1000 ] || fail "only $functions functions are selected"
echo attach >$control || fail "attaching"
ls -lR /proc/sys | sort | wc -l >/tmp/lines
calls=$(sed -n 's/.*\bcalls=\([0-9]*\).*/\1/p' /sys/kernel/debug/fentry/status)
[ "$calls" -gt 1000 ] || fail "only $calls calls were counted"
echo detach >$control || fail "detaching"
guest functions 1000 'shmem_*' >/files
guest select /files
echo measure >$control || fail "attaching to entry and exit"
cp /bin/busybox /tmp/copy
measured=$(wc -l </sys/kernel/debug/fentry/latencies)
[ "$measured" -gt 5 ] || fail "latencies of only $measured functions were measured"
echo detach >$control || fail "detaching from entry and exit"
rmmod fentry || fail "the module cannot be unloaded"
dmesg | grep -E 'Missing ENDBR|Oops|Control protection' | sed 's/^/ibt: error: /'
echo "ibt: functions=$functions calls=$calls measured=$measured"
