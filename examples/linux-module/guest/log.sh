# What the kernel has to say of all that.

dmesg | grep -E 'WARNING: |BUG: |Oops|detected stalls|lockup - |Call Trace|ftrace .*(bug|faulted)|fentry: ' |
    grep -v -e 'loading out-of-tree module' -e 'module verification failed' \
        -e 'a call of a measured function has not returned' |
    sed 's/^/log: warning: /'
echo "log: $(dmesg | wc -l) lines"
