package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// What docs/kubernetes uses of Kubernetes' types. Fields that are not among them are
// refused, so that a misspelt one does not pass.
type (
	meta struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	}
	selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	}
	kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   meta   `json:"metadata"`
	}
	service struct {
		kind
		Spec struct {
			ClusterIP string            `json:"clusterIP"`
			Selector  map[string]string `json:"selector"`
			Ports     []struct {
				Name string `json:"name"`
				Port int    `json:"port"`
			} `json:"ports"`
		} `json:"spec"`
	}
	budget struct {
		kind
		Spec struct {
			MaxUnavailable int      `json:"maxUnavailable"`
			Selector       selector `json:"selector"`
		} `json:"spec"`
	}
	probeSpec struct {
		GRPC struct {
			Port    int    `json:"port"`
			Service string `json:"service"`
		} `json:"grpc"`
		PeriodSeconds    int `json:"periodSeconds"`
		FailureThreshold int `json:"failureThreshold"`
	}
	container struct {
		Name    string   `json:"name"`
		Image   string   `json:"image"`
		Command []string `json:"command"`
		Ports   []struct {
			Name          string `json:"name"`
			ContainerPort int    `json:"containerPort"`
		} `json:"ports"`
		Env []struct {
			Name      string `json:"name"`
			Value     string `json:"value"`
			ValueFrom struct {
				FieldRef struct {
					FieldPath string `json:"fieldPath"`
				} `json:"fieldRef"`
			} `json:"valueFrom"`
		} `json:"env"`
		ReadinessProbe probeSpec `json:"readinessProbe"`
		LivenessProbe  probeSpec `json:"livenessProbe"`
		Lifecycle      struct {
			PreStop struct {
				Sleep struct {
					Seconds int `json:"seconds"`
				} `json:"sleep"`
			} `json:"preStop"`
		} `json:"lifecycle"`
	}
	statefulSet struct {
		kind
		Spec struct {
			ServiceName         string   `json:"serviceName"`
			Replicas            int      `json:"replicas"`
			PodManagementPolicy string   `json:"podManagementPolicy"`
			Selector            selector `json:"selector"`
			Template            struct {
				Metadata meta `json:"metadata"`
				Spec     struct {
					TerminationGracePeriodSeconds int         `json:"terminationGracePeriodSeconds"`
					Containers                    []container `json:"containers"`
				} `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	}
)

func manifest[T any](t *testing.T, name string) (m T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../docs/kubernetes", name))
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(b, &m))
	return m
}

// grace is how long Kubernetes waits for a pod, of which preStop takes its part first.
func grace(t *testing.T) (all, preStop, drain time.Duration) {
	t.Helper()
	pod := manifest[statefulSet](t, "statefulset.yaml").Spec.Template.Spec
	c := pod.Containers[0]
	for _, e := range c.Env {
		if e.Name == "DRAIN_TIMEOUT" {
			var err error
			drain, err = time.ParseDuration(e.Value)
			require.NoError(t, err)
		}
	}
	return time.Duration(pod.TerminationGracePeriodSeconds) * time.Second,
		time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second, drain
}

func TestTheGraceIsLongerThanPreStopAndDrain(t *testing.T) {
	all, preStop, drain := grace(t)
	require.Positive(t, preStop)
	require.Positive(t, drain)
	require.GreaterOrEqual(t, all, preStop+drain+5*time.Second, "leaving takes up to 4s more, if etcd is away")
}

func TestThePodIsToldWhatTheProgramReads(t *testing.T) {
	c := manifest[statefulSet](t, "statefulset.yaml").Spec.Template.Spec.Containers[0]
	fields := map[string]string{}
	for _, e := range c.Env {
		fields[e.Name] = e.ValueFrom.FieldRef.FieldPath
		if fields[e.Name] == "" {
			require.NotEmpty(t, e.Value, e.Name)
		}
	}
	require.Equal(t, map[string]string{
		"POD_NAME": "metadata.name", "POD_IP": "status.podIP",
		"PORT": "", "ETCD_ENDPOINTS": "", "DRAIN_TIMEOUT": "",
	}, fields)
	require.Len(t, c.Command, 1, "no shell, which would keep the signal for itself")
}

func TestTheProbesAskWhatTheProgramAnswers(t *testing.T) {
	c := manifest[statefulSet](t, "statefulset.yaml").Spec.Template.Spec.Containers[0]
	require.Equal(t, "registered", c.ReadinessProbe.GRPC.Service)
	require.Empty(t, c.LivenessProbe.GRPC.Service, "it does not hang on etcd")
	require.Equal(t, c.Ports[0].ContainerPort, c.ReadinessProbe.GRPC.Port)
	require.Equal(t, c.Ports[0].ContainerPort, c.LivenessProbe.GRPC.Port)
}

func TestTheManifestsBelongTogether(t *testing.T) {
	set, svc := manifest[statefulSet](t, "statefulset.yaml"), manifest[service](t, "service.yaml")
	pdb := manifest[budget](t, "poddisruptionbudget.yaml")
	require.Equal(t, "apps/v1 StatefulSet", set.APIVersion+" "+set.Kind)
	require.Equal(t, "v1 Service", svc.APIVersion+" "+svc.Kind)
	require.Equal(t, "policy/v1 PodDisruptionBudget", pdb.APIVersion+" "+pdb.Kind)
	require.Equal(t, "None", svc.Spec.ClusterIP)
	require.Equal(t, svc.Metadata.Name, set.Spec.ServiceName)
	labels := set.Spec.Template.Metadata.Labels
	require.Equal(t, labels, set.Spec.Selector.MatchLabels)
	require.Equal(t, labels, svc.Spec.Selector)
	require.Equal(t, labels, pdb.Spec.Selector.MatchLabels)
	require.Equal(t, set.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort, svc.Spec.Ports[0].Port)
	require.Equal(t, "Parallel", set.Spec.PodManagementPolicy)
}
