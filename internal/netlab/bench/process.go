package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ticks is how many a second proc(5) counts processor time in.
const ticks = 100

// cpuSeconds is the processor time that a process has used (proc(5), stat).
func cpuSeconds(p *proc) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0, err
	}
	stat := string(b)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name before may hold anything
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat ends early", p.PID())
	}
	var sum float64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", p.PID(), err)
		}
		sum += n / ticks
	}
	return sum, nil
}

// cpu is what all its processes have used.
func (s subject) cpu() (sum float64, err error) {
	for _, p := range s.processes {
		n, err := cpuSeconds(p)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// residentMiB is the memory a process holds, in MiB.
func residentMiB(p *proc) (float64, error) { return statusMiB(p, "VmRSS") }

// heldMiB is that without what it maps of files, which the kernel takes back
// when it needs it.
func heldMiB(p *proc) (float64, error) { return statusMiB(p, "RssAnon") }

// peakMiB is the most it ever held, files included.
func peakMiB(p *proc) (float64, error) { return statusMiB(p, "VmHWM") }

// statusMiB reads a line of /proc/PID/status.
func statusMiB(p *proc, line string) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		var kib float64
		if n, _ := fmt.Sscanf(l, line+": %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", p.PID(), line)
}
