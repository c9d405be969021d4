// Prints the manifests of a kustomization as a JSON list: what `kubectl kustomize` makes of it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func build(folder string) ([]byte, error) {
	kustomizer := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	made, err := kustomizer.Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, err
	}
	manifests := []map[string]any{}
	for _, each := range made.Resources() {
		manifest, err := each.Map()
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, manifest)
	}
	return json.Marshal(manifests)
}

func main() {
	manifests, err := build(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(manifests))
}
