#!/bin/busybox sh
# The first process of a VM: mounts file systems, loads modules, runs the steps in /job, and powers off. The kernel's
# console is the first serial port. The output of this script goes to the second one, which the kernel's command line
# names, so that a kernel message cannot break a line of the tests.

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
# Linux 7.0 and later preempt a task when its time slice ends, and a program at a tracepoint with it. Without HRTICK, a
# slice ends at a tick, and usually the task finishes its system call first. One test enables preemption itself.
mount -t debugfs debugfs /sys/kernel/debug
features=/sys/kernel/debug/sched/features
[ ! -e "$features" ] || echo NO_HRTICK >"$features"
hostname kmesh-trace-vm
busybox ip link set lo up

for module in /modules/*.ko; do
    [ -e "$module" ] || continue
    insmod "$module" || echo "cannot load $module"
done

# Prints a separate line, even if the output of a program lacks its last line break.
say() {
    printf '\n@vm %s\n' "$*"
}

# run NAME COMMAND…: runs a step between two marks, which the host parses.
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
