// Command echo is the test pods' program: "serve" answers HTTP on 8080, "get URL" prints a status and a body, "fail URL"
// prints the error, "run COMMAND ARGS" runs a program of its image.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"time"
)

func main() {
	switch os.Args[1] {
	case "serve":
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			host, _ := os.Hostname()
			fmt.Fprintf(w, "echo from %s to %s\n", host, r.RemoteAddr)
		})
		fmt.Println(http.ListenAndServe(":8080", nil))
	case "fail":
		_, err := http.Get(os.Args[2])
		fmt.Println(err)
	case "get":
		client := http.Client{Timeout: 5 * time.Second}
		resp, err := client.Get(os.Args[2])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(resp.StatusCode)
		_, _ = io.Copy(os.Stdout, resp.Body)
	case "run":
		cmd := exec.Command(os.Args[2], os.Args[3:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}
