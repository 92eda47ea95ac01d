package main

const rootUsage = `
usage: tunneld VERB

Session control for encrypted tunnels.

  init      write the configuration of a gateway or of a plain node
  run       run the daemon
  check     check the configuration and touch nothing
  version   what this program is
  completion SHELL
            for bash, zsh, fish or powershell

  --help    of any verb: how it is used

exit status: 0 done, 1 failed, 2 usage, 5 not allowed (no CAP_NET_ADMIN)
`

const initUsage = `
usage: tunneld init [--dir DIR] --name NODE
       tunneld init [--dir DIR] --name NODE --public HOST:PORT [--listen ADDR]
                    --network NAME=PREFIX[,PREFIX]... [--route NAME=PREFIX]...

Writes DIR/tunneld.toml for a plain node, or with --public for a gateway, whose
certificate authority it makes too. An existing file is not overwritten.

  --dir DIR              where the file goes; default /etc/tunneld, whose state is
                         in /var/lib/tunneld and whose socket in /run/tunneld;
                         any other DIR holds these itself
  --name NODE            the name of this node
  --public HOST:PORT     where nodes reach this gateway: TCP and UDP
  --listen ADDR          where it listens; default :443, or the port of --public
  --network NAME=PREFIX[,PREFIX]
                         a network and its address pools, one IPv4, one IPv6 or
                         both; may be repeated
  --route NAME=PREFIX    a prefix that nodes of the network reach through this
                         gateway; may be repeated
`

const runUsage = `
usage: tunneld run [--config FILE] [--trace FILE] [--log-level LEVEL]

Runs the daemon in the foreground. SIGTERM and SIGINT suspend its sessions and
end it; a second one ends it at once.

  --config FILE      default /etc/tunneld/tunneld.toml
  --trace FILE       add every control message to FILE, in the pcapng format
                     that Wireshark reads; proofs of keys are zeroed in it
  --log-level LEVEL  debug, info, warn or error; default info
`

const checkUsage = `
usage: tunneld check [--config FILE]

Checks the configuration as run does, without touching the host. Silent if all
is well; else one problem a line on standard error and exit status 1.

  --config FILE  default /etc/tunneld/tunneld.toml
`

const versionUsage = `
usage: tunneld version

Prints version, revision and the version of Go it was built with.
`
