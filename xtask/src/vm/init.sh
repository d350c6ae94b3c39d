#!/bin/busybox sh
# The first process of a test machine: makes it a small Linux system, does the job that the host put into /job, and
# turns the machine off. The kernel's console is the first serial port; everything said here goes to the second (the
# kernel's command line names it), so that a kernel message can never break a line of the tests.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp RUST_BACKTRACE=1

/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/null >"/dev/$programs_port" 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# From 7.0 on the kernel puts a task aside right where its slice ends, and at tracepoints programs with it. Here a slice ends at a
# tick, and then the task goes on to the end of its system call, unless that is long. (Where it is otherwise has a test of its
# own, which sets it itself.)
mount -t debugfs debugfs /sys/kernel/debug
features=/sys/kernel/debug/sched/features
[ ! -e "$features" ] || echo NO_HRTICK >"$features"
hostname kmesh-trace-vm
busybox ip link set lo up

for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || echo "cannot load $module"
done

# A line of its own, even after a program that did not end its last one.
say() {
    printf '\n@vm %s\n' "$*"
}

# run NAME COMMAND…: what the host judges, between two lines that it knows.
run() {
    name=$1
    shift
    say "begin $name"
    "$@"
    say "end $name $?"
}

. /job
say "done"
poweroff -f
