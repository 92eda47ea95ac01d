package main

import (
	"strings"
	"testing"
)

const (
	passing = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	skipping = `{"Action":"output","Package":"q","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"q","Test":"TestB","Output":"    b_test.go:9: needs root\n"}
{"Action":"output","Package":"q","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"q","Test":"TestB"}
{"Action":"output","Package":"q","Output":"ok  \tq\t0.1s\n"}
{"Action":"pass","Package":"q"}
`
	failing = `{"Action":"output","Package":"r","Test":"TestC","Output":"    c_test.go:3: f() = 1, want 2\n"}
{"Action":"output","Package":"r","Test":"TestD","Output":"good\n"}
{"Action":"pass","Package":"r","Test":"TestD"}
{"Action":"fail","Package":"r","Test":"TestC"}
{"Action":"output","Package":"r","Output":"FAIL\tr\t0.1s\n"}
{"Action":"fail","Package":"r"}
`
	dying = `{"Action":"output","Package":"s","Test":"TestE","Output":"panic: test timed out\n"}
{"Action":"output","Package":"s","Output":"FAIL\ts\t600s\n"}
{"Action":"fail","Package":"s"}
`
	unbuilt = `{"ImportPath":"u","Action":"build-output","Output":"u.go:1:1: syntax error\n"}
{"Action":"output","Package":"u","Output":"FAIL\tu [build failed]\n"}
{"Action":"fail","Package":"u"}
`
)

func TestRun(t *testing.T) {
	tests := []struct {
		name   string
		args   []string
		in     string
		status int
		want   []string
		not    []string
	}{
		{"passing", nil, passing, 0, []string{"ok  \tp\t0.1s\n", "1 ok, 0 failed; tests: 1 passed"}, []string{"chatter", "PASS"}},
		{"skip is allowed", nil, skipping, 0, []string{"not run: q TestB: b_test.go:9: needs root\n", "1 not run"}, []string{"=== RUN"}},
		{"skip is forbidden", []string{"-noskip"}, skipping, 1, []string{"needs root", "FAIL"}, nil},
		{"nothing skipped", []string{"-noskip"}, passing, 0, nil, []string{"FAIL"}},
		{"failing", nil, passing + failing, 1, []string{"f() = 1, want 2", "FAIL\tr", "1 ok, 1 failed"}, []string{"good"}},
		{"a test that never ended", nil, dying, 1, []string{"panic: test timed out", "FAIL\ts"}, nil},
		{"a package that does not build", nil, unbuilt, 1, []string{"u.go:1:1: syntax error", "[build failed]"}, nil},
		{"words of the go command", nil, "go: no such module\n", 0, []string{"go: no such module\n"}, nil},
		{"usage", []string{"extra"}, "", 2, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs strings.Builder
			if got := run(tt.args, strings.NewReader(tt.in), &out, &errs); got != tt.status {
				t.Errorf("run(%q) = %d, want %d; output:\n%s", tt.args, got, tt.status, out.String())
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output has no %q:\n%s", want, out.String())
				}
			}
			for _, not := range tt.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("output has %q:\n%s", not, out.String())
				}
			}
		})
	}
}
