// Package e2e tests the whole stack on a real etcd, and real gRPC servers on TCP.
//
// What breaks the plain parts, found by experiment with grpc-go v1.85.0 and etcd's
// client v3.7.3, and the tests that show that homing holds (facts_test.go checks
// that they exist):
//
//	 1 the official resolver drops metadata        TestMetadataReachesThePicker
//	 2 its Build has no deadline                   TestWithEtcdAbsentCallsFailByTheirDeadlineAndWorkWhenItComes
//	                                               TestCloseReturnsAtOnceWhileEtcdIsAbsent
//	                                               TestAChannelThatWakesWhileEtcdIsDownHasTheLastList
//	 3 a watch that fails ends for good            TestACompactionUnderAnIdleWatchIsSurvived
//	 4 a wiped etcd is silence                     TestAWipedEtcdIsNoticed
//	                                               TestAWipedEtcdThatHasGrownAgainIsNoticed
//	 5 an empty list is never reported, no order   TestWithNothingRegisteredCallsFailAtOnce
//	                                               TestInstancesAreSortedByIDAndThenByKey
//	 6 lost keys fail calls to living servers      TestAllKeysDeletedAtOnceMoveNobody
//	 7 nothing registers again                     TestALostRegistrationComesBack
//	                                               TestARegistrationSurvivesAnOutageOfThreeTTLs
//	 8 a burst costs its square                    TestABurstOfRegistrationsIsTakenInAsAFewLists
//	 9 Build and Close leak                        TestBuildAndCloseUnderChurnLeaveNothingBehind
//	10 bad records become endpoints                TestBadRecordsHideNoGoodOnes
//	                                               TestTwoKeysWithOneAddressAreOneServer
//	11 a dropped flow goes unnoticed               TestAWatchOnADroppedFlowComesBack
//	12 comparing decoded metadata panics           TestAttributesThatHoldAMetaCanBeCompared
//	13 balancer/base reads only Addresses          TestMetadataChangesReconnectNothing
//	14 EndpointMap ignores attributes              TestChangedAttributesArePublishedAndReconnectNothing
//	15 status errors from pickers end calls        TestAnErrorOfOursIsNeverAStatus
//	16 a queued call waits for a picker            TestEveryCallHeldForALostServerIsReleasedByTheEndOfTheWindow
//	17 idleness closes resolver and balancer       TestParityAnIdleChannelWakesForACall
//	18 reading all metadata allocates              TestPicksAllocate
//	19 ring_hash moves keys needlessly             TestNoNeedlessMove
//	20 endpointsharding walks all its children     TestTheSameListAgainIsNoWork, and the benchmarks
//	21 round_robin's counter is shared             the benchmarks
//	22 what pick_first needs from its parent       TestHealth
//	                                               TestANewIncarnationElsewhereTakesOver
//	                                               TestOutlierDetectionTakesAFailingServerOut
//	                                               TestNothingIsPublishedAfterClose
//	23 a pick of a lost connection sleeps          TestAPreferredServerThatReturnsInsideTheWindowKeepsItsOwn
//	24 Done does not say what was reached          TestAnAttemptThatWasNeverSentLeavesASessionNowhere
//	                                               TestAnAttemptThatMayHaveArrivedHoldsTheSession
//	25 a header before an error ends retries       TestRetriesGoOnWithInterceptorsInstalled
//	26 status looks through %w                     TestAnErrorOfOursIsNeverAStatus
//	27 leases expire one by one                    TestARemovalOneByOneMovesNobody
//	28 gRPC runs inside testing/synctest           TestAServerIsKeptForTheGraceAndThenWaitedForForTheWindow
package e2e
