// Package page shows a game of servers and players in a browser while it goes on:
// islands, dots, sparks, a timeline, and buttons that do things to it.
//
// The game writes on a [Board] what is where; [Handler] serves the page, sends it what
// changes on the board, and hands on what is pressed. It knows nothing of gRPC or etcd.
package page
