/** The models that a bench is asked for: bundles, checkpoints, or the names of published shapes. */
import { stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { execaNode } from 'execa';
import { type Manifest, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadTokenizer, type Tokenizer } from '../../services/lib/text/tokenizer.ts';

const CLI = join(PACKAGE_ROOT, 'dist', 'services', 'cli.js');

export interface BenchModel {
  /** The bundle's: `qwen2.5-coder-0.5b`. */
  readonly name: string;
  readonly bundle: string;
  readonly manifest: Manifest;
  readonly tokenizer: Tokenizer;
}

export interface ModelOptions {
  /** Folder for bundles. */
  readonly data: string;
  /** Of bundles that are made. */
  readonly precision: string;
  readonly prefillPrecision?: string;
}

/**
 * Opens a bundle; makes it first, once, where `model` is a checkpoint's folder (`llavacode export`) or the name of a
 * published shape (`llavacode synth`: seeded random weights, as fast as the real ones).
 */
export async function openModel(model: string, options: ModelOptions): Promise<BenchModel> {
  const bundle = await bundleOf(model, options);
  const { manifest, tokenizerDir } = await openBundle(bundle);
  return { name: manifest.name, bundle, manifest, tokenizer: await loadTokenizer(tokenizerDir) };
}

async function bundleOf(model: string, { data, precision, prefillPrecision }: ModelOptions): Promise<string> {
  if (await exists(join(model, 'manifest.json'))) return resolve(model);
  const checkpoint = await exists(join(model, 'config.json'));
  const made = [basename(resolve(model)), precision, ...(prefillPrecision ? [prefillPrecision] : [])].join('-');
  const to = resolve(data, 'bundles', made);
  if (await exists(join(to, 'manifest.json'))) return to;
  const prefill = prefillPrecision ? ['--prefill-precision', prefillPrecision] : [];
  await runCli([checkpoint ? 'export' : 'synth', '--llm', model, '--to', to, '--precision', precision, ...prefill]);
  return to;
}

/**
 * Another command of ours, in a process of its own; what it says goes to the terminal.
 * @throws ServingError internal when it fails.
 */
export async function runCli(args: readonly string[]): Promise<void> {
  const { exitCode } = await execaNode(CLI, args, { stdio: ['ignore', 2, 2], reject: false });
  if (exitCode !== 0)
    throw new ServingError('internal', `llavacode ${args.join(' ')} failed with exit code ${exitCode}`);
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );
