package main

const rootUsage = `
usage: tunnelctl [--socket PATH] [--json] VERB

Shows and steers the tunneld of this machine.

on a node
  join CODE|-|--file FILE     enrol this node with an invite code
  up TUNNEL                   start a tunnel and wait for its session
  down TUNNEL                 stop a tunnel, until the next up
  suspend TUNNEL              let nothing pass, and keep the session
  resume TUNNEL               go on with a suspended tunnel
  extend TUNNEL               ask for a longer life of its session
  leave TUNNEL                stop a tunnel and forget it
  status                      tunnels, networks, problems

on a gateway
  invite NODE                 print an invite code for a node
  node list                   the nodes that were invited
  node revoke NODE            end a node's rights and its sessions
  drain                       have the nodes leave this gateway
  sessions                    the sessions of this gateway
  session show ID             one session and what happened to it
  session kill ID             close a session
  session release ID          let a session out of quarantine

on both
  events                      what happened, and what happens
  version                     of this program and of the daemon
  completion SHELL            for bash, zsh, fish or powershell

flags
  --socket PATH   the daemon's socket; default $TUNNELD_SOCKET,
                  else /run/tunneld/tunneld.sock
  --json          print JSON
  --help          of any verb: how it is used

exit status: 0 done, 1 failed, 2 usage, 3 no daemon behind the socket,
4 no such tunnel, session, network or node, 5 not allowed, 6 changed meanwhile
`

const sessionUsage = `
usage: tunnelctl session show ID
       tunnelctl session kill ID [--reason TEXT] [--if-serial N]
       tunnelctl session release ID

Shows or closes one session of this gateway, or lets it out of quarantine.
`

const nodeUsage = `
usage: tunnelctl node list
       tunnelctl node revoke NODE

Lists the nodes that this gateway invited, or revokes one of them.
`

const inviteUsage = `
usage: tunnelctl invite NODE [--network NAME]... [--advertise PREFIX]...
                        [--rate-up RATE] [--rate-down RATE] [--direction WAY]
                        [--ttl DURATION] [--replace]

Prints an invite code for a node: one line, a secret, good for one enrolment.
The node's administrator gives it to "tunnelctl join -".

  --network NAME      a network the node may enter; may be repeated;
                      default: every network of this gateway
  --advertise PREFIX  a prefix behind the node that it may announce; may be
                      repeated; default: none
  --rate-up RATE      the most the node may send, as in 20Mbit or 512kbit
  --rate-down RATE    the most it may receive; what is beyond either is dropped
  --direction WAY     up: it may only send, down: it may only receive;
                      default: as its networks say, which limit it as well
  --ttl DURATION      how long the code is good; default 1h
  --replace           the node is enrolled already: give it a new identity and
                      revoke the old one
`

const joinUsage = `
usage: tunnelctl join - [--as TUNNEL] [--interface IF]
       tunnelctl join --file FILE [--as TUNNEL] [--interface IF]
       tunnelctl join CODE [--as TUNNEL] [--interface IF]

Enrols this node with an invite code and starts the tunnel it leads to. The
code is read from standard input, from a file, or from the command line, where
other users of this machine can see it.

  --file FILE      the file that holds the code
  --as TUNNEL      the tunnel's name; default: the network's
  --interface IF   its network interface; default: the lowest free tnlN
`

const upUsage = `
usage: tunnelctl up TUNNEL [--wait DURATION]

Starts a tunnel and waits until its session is established. A tunnel that is
up already is left as it is.

  --wait DURATION  how long to wait; default 30s; 0 does not wait
`

const downUsage = `
usage: tunnelctl down TUNNEL [--if-serial N]

Closes the tunnel's session and removes its interface. It stays down, across
restarts too, until "tunnelctl up".

  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const suspendUsage = `
usage: tunnelctl suspend TUNNEL [--if-serial N]

Lets nothing pass the tunnel any more, at both ends, and keeps its session:
addresses, keys, interface. It stays so, across restarts too, until
"tunnelctl resume". The session's deadlines go on, all but that of idleness.

  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const resumeUsage = `
usage: tunnelctl resume TUNNEL [--if-serial N]

Goes on with a tunnel that was suspended. One that was not is left as it is.

  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const extendUsage = `
usage: tunnelctl extend TUNNEL [--by DURATION] [--if-serial N]

Asks the gateway to let the tunnel's session live longer than its network's
"absolute" says. How much it grants is for the network's "extend" to say.

  --by DURATION  how much longer; default 1h
  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const leaveUsage = `
usage: tunnelctl leave TUNNEL [--if-serial N]

Closes the tunnel's session and forgets a tunnel that "tunnelctl join" wrote.

  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const drainUsage = `
usage: tunnelctl drain [--to HOST:PORT]... [--over DURATION]
       tunnelctl drain --cancel

Announces that this gateway goes: nothing new begins here, and each node is told
when to leave, one after the other. A node goes to a gateway named by --to if
its tunnel has it in "gateways", without --to to any other that it has; one
that has no other keeps its session and waits. "tunnelctl status" shows how many
sessions are left. A restart of the daemon ends it as --cancel does.

  --to HOST:PORT    a gateway to go to; may be repeated
  --over DURATION   in which all are to leave; default 30s
  --cancel          the gateway stays after all
`

const statusUsage = `
usage: tunnelctl status

Shows this node's tunnels, its networks if it is a gateway, and what on this
machine stops traffic. The control connection and the data path are shown
apart: either may work without the other.
`

const sessionsUsage = `
usage: tunnelctl sessions

Lists the sessions of this gateway.
`

const sessionShowUsage = `
usage: tunnelctl session show ID

Shows one session, one that lives or one that is over, and tells its story.
`

const sessionKillUsage = `
usage: tunnelctl session kill ID [--reason TEXT] [--if-serial N]

Closes a session. The node keeps its rights and may come back; to end these,
see "tunnelctl node revoke".

  --reason TEXT  goes to the node and into the record
  --if-serial N  only if the session is still at the serial that "tunnelctl
                 status" or "session show" told; else exit status 6
`

const sessionReleaseUsage = `
usage: tunnelctl session release ID

Lets the packets pass of a session that is quarantined because the gateway has
lost its book of nodes. Whoever does so answers for the session's node: it is in
the book again, with the networks and prefixes that its sessions have. A node
that was revoked before the loss would be let in, too.
`

const completionUsage = `
usage: tunnelctl completion SHELL

Prints the completion for a shell: bash, zsh, fish or powershell.
`

const nodeListUsage = `
usage: tunnelctl node list

Lists the nodes that this gateway invited.
`

const nodeRevokeUsage = `
usage: tunnelctl node revoke NODE

Ends a node's rights and closes its sessions. To let it in again, invite it
with --replace.
`

const eventsUsage = `
usage: tunnelctl events [--follow]

Prints the last events that the daemon remembers, oldest first.

  --follow  go on with each event that happens
`

const versionUsage = `
usage: tunnelctl version

Prints what this program is and, if one runs, what the daemon is.
`
