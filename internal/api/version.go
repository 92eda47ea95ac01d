package api

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// ThisVersion says what the calling program is and what it was built from, as
// far as the Go command wrote it down; what it did not is "unknown".
func ThisVersion() Version {
	v := Version{Version: "unknown", Revision: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if s := strings.Trim(info.Main.Version, "()"); s != "" {
		v.Version = s
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if s := settings["vcs.revision"]; s != "" {
		v.Revision = s
	}
	if settings["vcs.modified"] == "true" {
		v.Revision += "+dirty"
	}
	return v
}

// String is one line: version, revision, Go version.
func (v Version) String() string {
	return v.Version + " (revision " + v.Revision + ", " + v.Go + ")"
}
