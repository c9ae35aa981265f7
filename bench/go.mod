module github.com/homing-grpc/homing/bench

go 1.26

replace github.com/homing-grpc/homing => ..
