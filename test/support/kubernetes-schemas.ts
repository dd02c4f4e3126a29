/**
 * Objects of Kubernetes against the published schemas: those of Kubernetes itself, of the Prometheus operator, KEDA and
 * cert-manager as npm packages have them, and InferencePool's from its own definition in test/goldens/kubernetes.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Certificate, Issuer } from '@kubernetes-models/cert-manager/cert-manager.io/v1';
import { ScaledObject } from '@kubernetes-models/keda/keda.sh/v1alpha1';
import { PodMonitor, PrometheusRule } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';
import { Ajv } from 'ajv';
import { Deployment, StatefulSet } from 'kubernetes-models/apps/v1';
import { HorizontalPodAutoscaler } from 'kubernetes-models/autoscaling/v2';
import { NetworkPolicy } from 'kubernetes-models/networking.k8s.io/v1';
import { PodDisruptionBudget } from 'kubernetes-models/policy/v1';
import { ConfigMap, Service, ServiceAccount } from 'kubernetes-models/v1';
import { parse } from 'yaml';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { Resource } from './chart.ts';

/** Validates the object, and throws an Error that says where it is wrong. */
type Validate = (object: object) => void;

interface Model {
  readonly prototype: { validate(): void };
  readonly apiVersion: string;
  readonly kind: string;
}

const MODELS: readonly Model[] = [
  Certificate,
  ConfigMap,
  Deployment,
  HorizontalPodAutoscaler,
  Issuer,
  NetworkPolicy,
  PodDisruptionBudget,
  PodMonitor,
  PrometheusRule,
  ScaledObject,
  Service,
  ServiceAccount,
  StatefulSet,
];

const kindOf = ({ apiVersion, kind }: { readonly apiVersion: string; readonly kind: string }) =>
  `${apiVersion} ${kind}`;

function inferencePool(): [string, Validate] {
  const text = readFileSync(join(PACKAGE_ROOT, 'test', 'goldens', 'kubernetes', 'inferencepools.yaml'), 'utf8');
  const { group, names, versions } = parse(text).spec;
  const [{ name, schema }] = versions;
  // The extensions of Kubernetes (x-kubernetes-…) are rules in another language.
  const validate = new Ajv({ strict: false, formats: { int32: true, int64: true, 'date-time': true } }).compile(
    schema.openAPIV3Schema,
  );
  const check: Validate = (object) => {
    if (validate(object)) return;
    throw new Error(validate.errors?.map(({ instancePath, message }) => `${instancePath} ${message}`).join('; '));
  };
  return [kindOf({ apiVersion: `${group}/${name}`, kind: names.kind }), check];
}

const SCHEMAS: ReadonlyMap<string, Validate> = new Map([
  // An instance would be a copy; the validator takes any object.
  ...MODELS.map((Kind): [string, Validate] => [kindOf(Kind), (object) => Kind.prototype.validate.call(object)]),
  inferencePool(),
]);

/**
 * What is wrong with an object: its schema's complaint, and the fields that the schema does not know, which an API
 * server would drop or refuse. A schema's validator reads every field that it knows, and no other.
 */
export function problemsOf(object: Pick<Resource, 'apiVersion' | 'kind' | 'spec'>): string[] {
  const validate = SCHEMAS.get(kindOf(object));
  if (validate === undefined) return [`${kindOf(object)} has no schema here`];
  const read = new Set<string>();
  const problems: string[] = [];
  try {
    validate(watched(object, '', read) as object);
  } catch (error) {
    problems.push((error as Error).message);
  }
  // What is in the metadata of any object does not depend on its kind: a definition of a resource leaves it open.
  const unread = unreadPaths(object, '', read).filter((path) => !path.startsWith('/metadata/'));
  return [...problems, ...unread.map((path) => `${path} is not in the schema`)];
}

/** A view of a value that notes the paths of the fields that are read. */
function watched(value: unknown, path: string, read: Set<string>): unknown {
  if (typeof value !== 'object' || value === null) return value;
  return new Proxy(value, {
    get(target, key, receiver) {
      const found: unknown = Reflect.get(target, key, receiver);
      if (typeof key !== 'string' || !Object.hasOwn(target, key)) return found;
      read.add(`${path}/${key}`);
      return watched(found, `${path}/${key}`, read);
    },
  });
}

/** Paths of the fields and items that were not read; what is within such a field is told by it. */
function unreadPaths(value: unknown, path: string, read: ReadonlySet<string>): string[] {
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, item]) => {
    const own = `${path}/${key}`;
    return read.has(own) ? unreadPaths(item, own, read) : [own];
  });
}
