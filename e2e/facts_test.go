package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryFactHasItsTest(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	var code strings.Builder
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			var b []byte
			b, err = os.ReadFile(path)
			code.Write(b)
		}
		return err
	}))
	for _, name := range regexp.MustCompile(`\bTest\w+`).FindAllString(string(doc), -1) {
		require.Contains(t, code.String(), "func "+name+"(t *testing.T)")
	}
	for n := 1; n <= 28; n++ {
		require.Regexp(t, regexp.MustCompile(`(?m)^//\t\s*`+strconv.Itoa(n)+` `), string(doc))
	}
}
