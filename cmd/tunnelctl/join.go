package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

// maxCode is far longer than any invite code, in octets.
const maxCode = 16 << 10

func newJoin(c *cli) *cobra.Command {
	var req api.JoinRequest
	var file string
	cmd := &cobra.Command{
		Use:               "join CODE|-",
		Short:             "enrol this node with an invite code",
		Long:              joinUsage,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("file") && len(args) == 0 {
				return nil
			}
			return wants("CODE, - or --file FILE")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if cmd.Flags().Changed("file") && len(args) > 0 {
				return usageOf(cmd, "--file and the argument %q are two codes; give one", args[0])
			}
			if req.Code, err = c.readCode(cmd, args, file); err != nil {
				return err
			}
			return c.join(cmd, req)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "the file that holds the code")
	cmd.Flags().StringVar(&req.As, "as", "", "the tunnel's name")
	cmd.Flags().StringVar(&req.Interface, "interface", "", "the tunnel's network interface")
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("interface", cobra.NoFileCompletions)
	return cmd
}

// readCode takes the invite code from where the caller says. Files are opened
// here, with the caller's rights, never by the daemon.
func (c *cli) readCode(cmd *cobra.Command, args []string, file string) (string, error) {
	where, from := "standard input", c.stdin
	switch {
	case len(args) == 1 && args[0] != "-":
		where, from = "the argument", strings.NewReader(args[0])
	case len(args) == 0:
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		where, from = file, f
	case isTerminal(c.stdin):
		fmt.Fprintln(c.stderr, "paste the invite code and press return, then control-D:")
	}
	b, err := io.ReadAll(io.LimitReader(from, maxCode+1))
	if err != nil {
		return "", fmt.Errorf("invite code from %s: %w", where, err)
	}
	words := strings.Fields(string(b))
	if len(words) != 1 || len(b) > maxCode {
		return "", usageOf(cmd, "%s holds no invite code: want one line as `tunnelctl invite` prints it", where)
	}
	return words[0], nil
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (c *cli) join(cmd *cobra.Command, req api.JoinRequest) error {
	reply, err := c.client().Join(cmd.Context(), req)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(reply)
	}
	for _, t := range reply.Tunnels {
		fmt.Fprintf(c.out, "tunnel %s through %s, node %s, routes %s\n",
			printable(t.Name), printable(reply.Gateway), printable(reply.Node), list(t.Routes))
	}
	return nil
}
