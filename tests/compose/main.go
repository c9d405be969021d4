// Prints a Compose file as Docker Compose understands it, with the parser of Docker Compose.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func load(path string) ([]byte, error) {
	allProfiles := cli.WithProfiles([]string{"*"})
	options, err := cli.NewProjectOptions([]string{path}, cli.WithOsEnv, allProfiles)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalJSON()
}

func main() {
	parsed, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(parsed))
}
