#!/usr/bin/env bash
# A foreign host for tests: boots Debian's cloud kernel, which has WireGuard,
# L2TP, netem and VXLAN as modules, in a software-emulated machine, joins it to
# a network namespace by a TAP device if it is to have a network, runs one shell
# script in it as root and exits with that script's status. Written for
# kernelbox.go, which checks that the programs are there and says what leaps are.
#
# The guest has what this host has of bash, ip, tc, wg, ping, iperf3 and
# tcpdump, and busybox for the rest; eth0 is the other end of the TAP.
set -euo pipefail

usage() {
  echo "usage: kernelbox.sh -s SCRIPT [-n NETNS -t TAP] [-m MODULE]... [-b PROGRAM]... [-M MIB] [-T SECONDS] [-l]" >&2
  exit 2
}

netns='' tap='' script='' memory=384 limit=120 modules=() programs=() leaps=()
while getopts s:n:t:m:b:M:T:l option; do
  case $option in
    s) script=$OPTARG ;; n) netns=$OPTARG ;; t) tap=$OPTARG ;;
    m) modules+=("$OPTARG") ;; b) programs+=("$OPTARG") ;;
    M) memory=$OPTARG ;; T) limit=$OPTARG ;;
    l) leaps=(-icount "shift=1,align=off,sleep=off" -rtc clock=vm) ;; *) usage ;;
  esac
done
[[ -r $script && (-z $netns || -n $tap) ]] || usage

# The kernel image is unpacked once, under a lock; nothing is installed.
fetch_kernel() {
  local image download
  image=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
  [[ -n $image ]] || { echo "kernelbox: apt knows no linux-image-cloud-amd64: run apt-get update" >&2; exit 3; }
  download=$(mktemp -d "$cache/download.XXXXXX")
  (cd "$download" && apt-get download -qq "$image" >/dev/null 2>"$download/err") ||
    { echo "kernelbox: apt cannot download $image: $(tail -n 1 "$download/err"): run apt-get update" >&2; rm -rf "$download"; exit 3; }
  dpkg -x "$download"/*.deb "$download/root"
  depmod -b "$download/root" "$(ls "$download/root/lib/modules")"
  rm -rf "$cache/root"
  mv -T "$download/root" "$cache/root"
  rm -rf "$download"
}
cache=${KERNELBOX_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kernelbox}
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
compgen -G "$cache/root/boot/vmlinuz-*" >/dev/null || fetch_kernel
flock -u 9
kernel=$(compgen -G "$cache/root/boot/vmlinuz-*" | head -n 1)
version=${kernel##*/vmlinuz-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,root,etc,lib64,lib/modules/"$version"}
cp "$(command -v busybox)" "$root/bin/busybox"

# add PROGRAM copies a program and the libraries it needs.
add() {
  local path library
  path=$(command -v "$1") || return 1
  cp -L "$path" "$root/bin/"
  { ldd "$path" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp -Ln "$library" "$root$library"
  done
}
for program in bash ip tc wg ping iperf3 tcpdump; do add "$program" || true; done
for program in "${programs[@]}"; do
  add "$program" || { echo "kernelbox: no program $program" >&2; exit 3; }
done

# Modules in the order in which they need each other.
for module in virtio_pci virtio_net "${modules[@]}"; do
  list=$(modprobe -d "$cache/root" -S "$version" -D "$module" 2>/dev/null) ||
    { echo "kernelbox: the kernel has no module $module" >&2; exit 3; }
  awk '$1 == "insmod" { print $2 }' <<<"$list"
done | awk '!seen[$0]++' >"$work/order"
while read -r module; do
  cp "$module" "$root/lib/modules/"
  echo "/lib/modules/${module##*/}"
done <"$work/order" >"$root/etc/modules"

cp "$script" "$root/script"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin:/sbin:/busybox HOME=/root
/bin/busybox mkdir -p /busybox
/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /run
while read -r module; do insmod "$module" || echo "kernelbox: insmod $module failed"; done </etc/modules
ip link set lo up
head -c 1 /dev/random >/dev/null # waits for the random generator: until then WireGuard drops every handshake
echo KERNELBOX-BEGIN
bash /script
echo "KERNELBOX-EXIT $?"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

inside=() network=()
if [[ -n $netns ]]; then
  inside=(ip netns exec "$netns")
  "${inside[@]}" ip tuntap add dev "$tap" mode tap 2>/dev/null || true # it may be there already, with addresses
  "${inside[@]}" ip link set "$tap" up
  network=(-netdev "tap,id=n0,ifname=$tap,script=no,downscript=no" -device virtio-net-pci,netdev=n0,romfile=)
fi
status=''
# The guest's lines are passed on as they come, so that a caller can wait for one.
while IFS= read -r line; do
  line=${line%$'\r'}
  case $line in
    *KERNELBOX-BEGIN) begun=1 ;;
    KERNELBOX-EXIT\ *) status=${line#KERNELBOX-EXIT } ;;
    *) [[ -z ${begun:-} ]] || printf '%s\n' "$line" ;;
  esac
done < <(exec timeout --foreground "$limit" "${inside[@]}" qemu-system-x86_64 -accel tcg "${leaps[@]}" -m "$memory" -nographic -no-reboot -nodefaults \
  -serial stdio -kernel "$kernel" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=1 loglevel=3" "${network[@]}" </dev/null 2>"$work/err")
[[ -n $status ]] || { echo "kernelbox: the machine did not finish within $limit s: $(tail -n 3 "$work/err")" >&2; exit 124; }
exit "$status"
