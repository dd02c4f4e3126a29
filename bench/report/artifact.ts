/** One JSON file per run: what was measured, raw, and everything that is needed to read or repeat it. */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import { describeEnvironment, type Environment } from '../system/environment.ts';
import type { BenchModel } from '../system/model.ts';
import { type Definitions, definitionsOf } from './definitions.ts';

export interface Artifact<Result = unknown> {
  readonly format: 1;
  /** Which bench: the words after `llavacode bench`. */
  readonly bench: string;
  /** The command that makes it again. */
  readonly command: string;
  readonly startedAt: string;
  readonly seconds: number;
  readonly environment: Environment;
  readonly models: readonly { readonly name: string; readonly precision: string; readonly fingerprint: string }[];
  readonly settings: Readonly<Record<string, unknown>>;
  /** Of the figures that its report shows. */
  readonly definitions: Definitions;
  readonly result: Result;
}

export interface RunDescription {
  readonly bench: string;
  readonly command: string;
  readonly models: readonly BenchModel[];
  readonly settings: Readonly<Record<string, unknown>>;
}

/** Runs a bench and wraps what it found. */
export async function record<Result>(run: RunDescription, measure: () => Promise<Result>): Promise<Artifact<Result>> {
  const environment = await describeEnvironment();
  const startedAt = new Date();
  const result = await measure();
  return {
    format: 1,
    bench: run.bench,
    command: run.command,
    startedAt: startedAt.toISOString(),
    seconds: Math.round((Date.now() - startedAt.getTime()) / 100) / 10,
    environment,
    models: run.models.map(({ name, manifest }) => ({
      name,
      precision: manifest.precision,
      fingerprint: manifest.fingerprint,
    })),
    settings: run.settings,
    definitions: definitionsOf(run.bench),
    result,
  };
}

/** Timestamps (keys in `…Ms`) to the microsecond, other figures to six decimals: raw data a third as long. */
function rounded(key: string, value: unknown): unknown {
  if (/Ms$/.test(key) && Array.isArray(value)) return value.map((inner) => rounded(key, inner));
  if (typeof value !== 'number' || Number.isInteger(value)) return value;
  const scale = /Ms$/.test(key) ? 1e3 : 1e6;
  return Math.round(value * scale) / scale;
}

export const artifactText = (artifact: Artifact) => `${JSON.stringify(artifact, rounded)}\n`;

export async function writeArtifact(dir: string, name: string, artifact: Artifact): Promise<string> {
  await mkdir(dir, { recursive: true });
  const file = join(dir, `${name}.json`);
  await writeFile(file, artifactText(artifact));
  return file;
}

/** Artifacts of a folder, by name, in the order of their names. Other JSON files are passed over. */
export async function readArtifacts(dir: string): Promise<Map<string, Artifact>> {
  const files = (await readdir(dir)).filter((name) => name.endsWith('.json')).sort();
  const artifacts = new Map<string, Artifact>();
  for (const file of files) {
    const value = JSON.parse(await readFile(join(dir, file), 'utf8')) as Partial<Artifact>;
    if (value.format === 1) artifacts.set(file.slice(0, -'.json'.length), value as Artifact);
  }
  return artifacts;
}

/** @throws ServingError invalid_request where it is none of ours. */
export async function readArtifact<Result = unknown>(file: string): Promise<Artifact<Result>> {
  const artifact = JSON.parse(await readFile(file, 'utf8')) as Artifact<Result>;
  if (artifact.format !== 1) throw new ServingError('invalid_request', `${file} is no bench artifact of format 1`);
  return artifact;
}
