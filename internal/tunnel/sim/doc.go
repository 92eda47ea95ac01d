// Package sim proves session control by simulation; it has tests only.
//
// The control machines, the address pool, the record and the messages are the
// real ones. Around them everything is made up and repeatable: clocks, one a
// node; disks that forget what was not synced; transports that break at any
// octet; and a manager that decides as internal/tunnel does. One seed gives one
// schedule of wishes and accidents. After every step the promises are checked.
//
//	go test ./internal/tunnel/sim -run TestSim             many schedules
//	go test ./internal/tunnel/sim -run TestSim -seed N -v  one of them again, step by step
//	go test ./internal/tunnel/sim -run TestMutants         the simulator finds bugs
//	TUNNELD_LONG=1 go test ./internal/tunnel/sim -run TestSim -timeout 4h
package sim
