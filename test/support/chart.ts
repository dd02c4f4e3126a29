/**
 * The Helm chart in deploy/helm as it renders. Renderings are kept in test/goldens/chart, so that tests read them where
 * there is no helm; each names the digest of the texts that it was made of. Where there is a helm, it renders anew.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import { parse, parseAllDocuments } from 'yaml';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

const run = promisify(execFile);
const RENDER_TIMEOUT_MS = 60_000;

export const CHART = join(PACKAGE_ROOT, 'deploy', 'helm', 'llavacode');
const RENDERED = join(PACKAGE_ROOT, 'test', 'goldens', 'chart');
/** Helm as `go install` builds it does not know which Kubernetes it is made for. */
const KUBERNETES = '1.34.0';
export const RELEASE = 'llavacode';
export const NAMESPACE = 'code';

/** Each has its own values in test/goldens/chart; webgpu and cuda12 also those of their class in the chart. */
export const CASES = ['small', 'plain', 'whole', 'colocated', 'webgpu', 'cuda12', 'candidate'] as const;
export type Case = (typeof CASES)[number];

/** An object of Kubernetes. */
export interface Resource<Spec = unknown> {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { readonly name: string; readonly labels: Readonly<Record<string, string>> };
  /** Its shape depends on the kind. */
  readonly spec: Spec;
  readonly data?: Readonly<Record<string, string>>;
}

/** The objects of one kind, whose `spec` the caller names the fields of. */
export const ofKind = <Spec>(resources: readonly Resource[], kind: string) =>
  resources.filter((each) => each.kind === kind) as Resource<Spec>[];

export const renderedFile = (name: string) => join(RENDERED, `${name}.rendered.yaml`);

/** Files of values of a case, the later ones winning. */
export function valuesFiles(name: Case): string[] {
  const ofClass = join(CHART, `values-${name}.yaml`);
  return [...(existsSync(ofClass) ? [ofClass] : []), join(RENDERED, `${name}.values.yaml`)];
}

async function chartFiles(folder = CHART): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true });
  const nested = entries.map((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? chartFiles(path) : [path];
  });
  return (await Promise.all(nested)).flat().sort();
}

/** SHA-256 over names and texts of all that a rendering depends on. @param others files beside those of the chart. */
export async function chartDigest(others: readonly string[]): Promise<string> {
  const hash = createHash('sha256');
  for (const path of [...(await chartFiles()), ...others]) {
    hash.update(`${relative(PACKAGE_ROOT, path)}\n${await readFile(path, 'utf8')}\n`);
  }
  return hash.digest('hex');
}

/** Earlier ones, and helm 4, word refusals differently. One that `go install` has built says v3.19 alone. */
const VERSION = /^v3\.(?:1[89]|[2-9]\d)\b/;

/** The helm of PATH, or the one that CONTRIBUTING.md says how to build; undefined where there is none. */
export async function helm(): Promise<string | undefined> {
  for (const command of ['helm', join(PACKAGE_ROOT, '.cache', 'helm', 'helm')]) {
    const found = await run(command, ['version', '--short'], { timeout: RENDER_TIMEOUT_MS }).catch(() => undefined);
    if (found && VERSION.test(found.stdout)) return command;
  }
  return undefined;
}

/** What `helm template` prints. @throws Error with helm's message, where it refuses the values. */
export async function render(command: string, values: readonly string[], set: readonly string[] = []): Promise<string> {
  const options = ['--kube-version', KUBERNETES, '--namespace', NAMESPACE];
  const words = [
    ...options,
    ...values.flatMap((file) => ['--values', file]),
    ...set.flatMap((pair) => ['--set-json', pair]),
  ];
  const { stdout } = await run(command, ['template', RELEASE, CHART, ...words], {
    timeout: RENDER_TIMEOUT_MS,
    maxBuffer: 2 ** 24,
  });
  return stdout;
}

/** The objects of a case's rendering. */
export async function resourcesOf(name: Case): Promise<Resource[]> {
  const documents = parseAllDocuments(await readFile(renderedFile(name), 'utf8'));
  return documents.map((document) => {
    if (document.errors.length > 0) throw document.errors[0];
    return document.toJS() as Resource;
  });
}

/** The values of a case as its rendering has them: the chart's, with those of its files over them. */
export async function valuesOf(name: Case): Promise<Values> {
  const files = [join(CHART, 'values.yaml'), ...valuesFiles(name)];
  const read = async (path: string) => parse(await readFile(path, 'utf8'), { merge: true }) as Tree;
  return (await Promise.all(files.map(read))).reduce(over) as unknown as Values;
}

type Tree = Readonly<Record<string, unknown>>;
const isTree = (value: unknown): value is Tree => typeof value === 'object' && value !== null && !Array.isArray(value);

function over(below: Tree, above: Tree): Tree {
  const merged: Record<string, unknown> = { ...below };
  for (const [key, value] of Object.entries(above)) {
    const under = below[key];
    merged[key] = isTree(value) && isTree(under) ? over(under, value) : value;
  }
  return merged;
}

interface Pool {
  readonly enabled: boolean;
  readonly overheadMiB: number;
  readonly slots: number;
}

/** The part of the values that tests compare with. */
export interface Values {
  readonly model: Readonly<Record<string, number>> & { readonly precision: string };
  readonly candidate: { readonly model: Values['model'] };
  readonly shutdown: Readonly<
    Record<'drainTimeoutMs' | 'gatewayPreStopSeconds' | 'workerPreStopSeconds' | 'marginSeconds', number>
  >;
  readonly gateway: Pool & Readonly<Record<'requestTimeoutMs' | 'indexCacheBytes' | 'rowCacheBytes', number>>;
  readonly prefill: Pool;
  readonly decode: Pool;
  readonly colocated: Pool;
  readonly indexer: Pool;
  readonly gpu: { readonly class: string };
  readonly minReadySeconds: number;
  readonly startSeconds: number;
}
