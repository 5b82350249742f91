# The module under load: thousands of functions at once, entry and exit of some, and then
# loading and unloading. FUNCTIONS is how many, and ROUNDS how often.

control=/sys/kernel/debug/fentry/control

# Works on files until /tmp/stop is there.
use_files() {
    while [ ! -e /tmp/stop ]; do
        mkdir "/tmp/$1"
        for copy in 1 2 3 4; do
            cp /bin/busybox "/tmp/$1/$copy"
        done
        find /tmp /proc/sys /sys/kernel -type f >"/tmp/$1/list" 2>&1
        sort -r "/tmp/$1/list" | gzip | gunzip | wc -l >"/tmp/$1/lines"
        rm -r "/tmp/$1"
        echo files >>"/tmp/done.$1"
    done
}

# Starts processes until /tmp/stop is there.
use_processes() {
    while [ ! -e /tmp/stop ]; do
        for round in 1 2 3 4 5 6 7 8 9 10; do
            sh -c 'echo $$ | cat | (read pid; kill -0 $pid 2>&1)' >/tmp/output
        done
        echo processes >>"/tmp/done.$1"
    done
}

works() {
    cat /tmp/done.* 2>/dev/null | wc -l
}

fail() {
    echo "load: error: $*"
}

status() {
    sed -n "s/.*\b$1=\([0-9]*\).*/\1/p" /sys/kernel/debug/fentry/status
}

use_files 1 &
use_processes 2 &

insmod /fentry.ko || fail "the module cannot be loaded"
guest functions "$FUNCTIONS" >/many
guest select /many
echo attach >$control || fail "attaching"
before=$(works)
sleep 10
echo "load: uptime=$(cut -d" " -f1 /proc/uptime) functions=$(status functions) called=$(status called) calls=$(status calls) attach_us=$(($(status attach_ns) / 1000)) works=$(($(works) - before))"
[ "$(works)" -gt "$before" ] || fail "nothing was worked while functions were hooked"
sort -rn /sys/kernel/debug/fentry/counters | head -n 10 | sed 's/^/load: most called: /'
echo detach >$control || fail "detaching"
calls=$(status calls)
sleep 1
[ "$(status calls)" = "$calls" ] || fail "programs run after detaching"

guest functions 1000 'shmem_*' >/files
guest select /files
echo measure >$control || fail "attaching to entry and exit"
sleep 3
head -n 5 /sys/kernel/debug/fentry/latencies | sed 's/^/load: took: /'
measured=$(wc -l </sys/kernel/debug/fentry/latencies)
[ "$measured" -gt 5 ] || fail "latencies of only $measured functions were measured"
echo detach >$control || fail "detaching from entry and exit"
echo "load: measured=$measured of $(status functions) attach_us=$(($(status attach_ns) / 1000))"

# A task that sleeps in a measured function returns by emitted code, so that stays until it has.
guest functions 2 hrtimer_nanosleep >/sleeping
guest select /sleeping
echo measure >$control || fail "attaching to what sleeps"
sleep 30 &
sleeper=$!
sleep 1
! echo detach >$control 2>/dev/null || fail "detaching did not wait for a call that sleeps"
kill -0 $sleeper || fail "the call that detaching waited for was over"
kill $sleeper
wait $sleeper
echo detach >$control || fail "detaching from what does not sleep any more"
rmmod fentry || fail "the module cannot be unloaded"

guest functions 200 >/some
round=0
hooked=0
while [ $round -lt "$ROUNDS" ]; do
    insmod /fentry.ko || fail "the module cannot be loaded"
    guest select /some
    echo attach >$control || fail "attaching"
    hooked=$((hooked + $(status functions)))
    # With and without a detach of its own: unloading does what is left.
    [ $((round % 2)) = 0 ] || echo detach >$control || fail "detaching"
    rmmod fentry || fail "the module cannot be unloaded"
    round=$((round + 1))
done
echo "rounds: uptime=$(cut -d" " -f1 /proc/uptime) rounds=$round hooked=$hooked works=$(works)"
touch /tmp/stop
wait
