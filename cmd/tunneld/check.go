package main

import (
	"errors"

	"github.com/spf13/cobra"

	"tunneld/internal/config"
)

func newCheck(*cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "check the configuration and touch nothing",
		Long:  checkUsage,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := load(file)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", config.DefaultPath, "the configuration")
	return cmd
}

// load is the part of run that touches nothing: it reads the file and the
// tunnels that join wrote, and tells all problems at once.
func load(file string) (config.Config, error) {
	cfg, err := config.Load(file)
	if err != nil {
		return config.Config{}, err
	}
	joined, err := config.ReadTunnels(cfg.Node.StateDir)
	_, merged := config.Merge(cfg, joined)
	return cfg, errors.Join(err, merged) // the manager reads them once more, by itself
}
