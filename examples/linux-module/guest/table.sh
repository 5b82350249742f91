# What attaching costs, by each way: lines for the table.

insmod /fentry.ko || echo "table: error: the module cannot be loaded"
guest row none /dev/null
for count in 1 100 1000 10000; do
    guest functions $count >/functions
    for way in fentry kprobe-multi tracing-multi; do
        guest row $way /functions
    done
    # Each function by itself takes long: a minute for a thousand.
    [ $count -gt "$EACH" ] || guest row bpf-each /functions
done
rmmod fentry
