// Package gamepb is the generated code of game.proto.
//
// To generate it again: protoc 3.21 or later, protoc-gen-go v1.36.12 and
// protoc-gen-go-grpc v1.6.2 on the PATH.
package gamepb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative game.proto
