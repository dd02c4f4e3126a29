/** Artifacts: one JSON file per run, with the raw measurements and all that is needed to read or repeat it. */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Environment } from './environment.ts';

/** Definitions of figures, by the name of the figure. */
export type Definitions = Readonly<Record<string, string>>;

export interface Artifact<Result = unknown> {
  readonly format: 1;
  /** Name of the bench: the word after `llavacode bench`. */
  readonly bench: string;
  /** The command that makes the run again. */
  readonly command: string;
  readonly startedAt: string;
  readonly seconds: number;
  readonly environment: Environment;
  readonly models: readonly { readonly name: string; readonly precision: string; readonly fingerprint: string }[];
  /** The options of the run. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Definitions of the figures that the report shows. */
  readonly definitions: Definitions;
  readonly result: Result;
}

/**
 * Rounds timestamps (keys in `…Ms`) to the microsecond, other figures to six decimals and small ones to four digits: a
 * third of the size.
 */
function rounded(key: string, value: unknown): unknown {
  if (/Ms$/.test(key) && Array.isArray(value)) return value.map((inner) => rounded(key, inner));
  if (typeof value !== 'number' || Number.isInteger(value)) return value;
  if (Math.abs(value) < 1e-3) return Number(value.toPrecision(4)); // a divergence of 4e-9 is not zero
  const scale = /Ms$/.test(key) ? 1e3 : 1e6;
  return Math.round(value * scale) / scale;
}

export const artifactText = (artifact: Artifact) => `${JSON.stringify(artifact, rounded)}\n`;

/** @returns the path of the file. */
export async function writeArtifact(dir: string, name: string, artifact: Artifact): Promise<string> {
  await mkdir(dir, { recursive: true });
  const file = join(dir, `${name}.json`);
  await writeFile(file, artifactText(artifact));
  return file;
}

/** The artifacts of a folder by name, in the order of their names. Other JSON files are skipped. */
export async function readArtifacts(dir: string): Promise<Map<string, Artifact>> {
  const files = (await readdir(dir)).filter((name) => name.endsWith('.json')).sort();
  const artifacts = new Map<string, Artifact>();
  for (const file of files) {
    const value = JSON.parse(await readFile(join(dir, file), 'utf8')) as Partial<Artifact>;
    if (value.format === 1) artifacts.set(file.slice(0, -'.json'.length), value as Artifact);
  }
  return artifacts;
}

/** @throws ServingError invalid_request if the file is not an artifact of this format. */
export async function readArtifact<Result = unknown>(file: string): Promise<Artifact<Result>> {
  const artifact = JSON.parse(await readFile(file, 'utf8')) as Artifact<Result>;
  if (artifact.format !== 1) {
    throw new ServingError(
      'invalid_request',
      `${file} is not a bench artifact of format 1: give a file of bench/results`,
    );
  }
  return artifact;
}
