package inject

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// text is a string of the values that Helm's --set may have turned into a number or a boolean: a tag 1.31, a port list 8080.
type text string

// UnmarshalJSON takes a string, a number, a boolean or null (which is "").
func (t *text) UnmarshalJSON(data []byte) error {
	switch {
	case len(data) == 0:
		return fmt.Errorf("read value: it is empty")
	case string(data) == "null":
		*t = ""
	case data[0] == '"':
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*t = text(s)
	case string(data) == "true", string(data) == "false":
		*t = text(data)
	default:
		if _, err := strconv.ParseFloat(string(data), 64); err != nil {
			return fmt.Errorf("%s is not a string or a number", data)
		}
		*t = text(data)
	}
	return nil
}
