# machine.sh: boots systemd as the first process of namespaces of its own, with
# a root file system of its own over this machine's programs.
#
#   machine.sh ROOT FILES LOGS
#
# ROOT is an empty directory, FILES what is laid over the root file system, LOGS
# what is /var/log in there. What is mounted and made ends with the process, but
# for one empty cgroup if it is killed.
set -euo pipefail

# The first process begins here, in all namespaces but that of mounts.
if [[ ${1:-} == --first ]]; then
  root=$2 files=$3 logs=$4
  mount -t tmpfs -o mode=755 tmpfs "$root"
  cd "$root"
  mkdir -p dev etc mnt proc root run sys tmp usr var/{lib,log,tmp}
  chmod 1777 tmp var/tmp
  for d in bin sbin lib lib32 lib64 libx32; do
    if [[ -L /$d ]]; then cp -a "/$d" .; elif [[ -d /$d ]]; then mkdir "$d" && mount --rbind "/$d" "$d"; fi
  done
  mount --rbind /usr usr
  mount -t tmpfs -o mode=755 tmpfs usr/local
  mount -t tmpfs -o mode=755 tmpfs usr/lib/systemd/system-generators # what they find is of the host
  mount -o remount,bind,ro usr
  mount --bind "$logs" var/log
  mount -t proc proc proc
  mount -t sysfs sysfs sys
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs -o mode=755 tmpfs dev
  mkdir dev/{net,pts,shm}
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  while read -r name major minor; do mknod -m 666 "dev/$name" c "$major" "$minor"; done <<END
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
console 5 1
net/tun 10 200
END
  cp -a /etc/{ld.so.cache,nsswitch.conf} etc/
  printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
  printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
  cp -r "$files/." .
  pivot_root . mnt
  cd /
  umount -l /mnt
  systemd-sysusers
  # Units are those of FILES alone.
  exec env -i container=netlab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin SYSTEMD_UNIT_PATH=/usr/local/lib/systemd/system \
    /lib/systemd/systemd --unit=lab.target --log-target=console --show-status=no
fi

mount --make-rprivate /
cgroups=$(mktemp -d)
mount -t cgroup2 cgroup2 "$cgroups"
own=$cgroups/netlab-$$
mkdir "$own"
(
  echo "$BASHPID" >"$own/cgroup.procs"
  exec unshare --cgroup --pid --fork --kill-child --mount --uts --ipc bash "$0" --first "$@"
) &
wait "$!" || status=$?
find "$own" -depth -type d -exec rmdir {} +
umount "$cgroups"
rmdir "$cgroups"
exit "${status:-0}"
