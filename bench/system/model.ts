/** The models that a bench measures: bundles, checkpoints, or the names of published shapes. */
import { readFile, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { FORMAT, type Manifest, openBundle } from '../../services/lib/model/bundle/bundle.ts';
import type { KvForm } from '../../services/lib/model/bundle/choices.ts';
import type { EncoderShape } from '../../services/lib/model/checkpoint/synth.ts';
import { loadTokenizer, type Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { runCli } from './cli.ts';

export interface BenchModel {
  /** Name of the bundle, like `qwen2.5-coder-0.5b`. */
  readonly name: string;
  readonly bundle: string;
  readonly manifest: Manifest;
  readonly tokenizer: Tokenizer;
}

interface ModelOptions {
  /** Folder for bundles. */
  readonly data: string;
  /** Precision of a bundle that is made. */
  readonly precision: string;
  readonly prefillPrecision?: string;
  /** How the KV of a bundle that is made lies. */
  readonly kv?: KvForm;
  /** Encoder of a bundle that is made from a published shape; the stand-in of two layers when not given. */
  readonly encoder?: EncoderShape;
}

/**
 * Opens a bundle. It is made first, once, if `model` is a folder of a checkpoint (by `llavacode export`) or the name of
 * a published shape (by `llavacode synth`: seeded random weights, as fast as the real ones).
 */
export async function openModel(model: string, options: ModelOptions, signal?: AbortSignal): Promise<BenchModel> {
  const bundle = await bundleOf(model, options, signal);
  const { manifest, tokenizerDir } = await openBundle(bundle);
  return { name: manifest.name, bundle, manifest, tokenizer: await loadTokenizer(tokenizerDir) };
}

async function bundleOf(model: string, options: ModelOptions, signal?: AbortSignal): Promise<string> {
  const { data, precision, prefillPrecision, kv = 'floats' } = options;
  if (await exists(join(model, 'manifest.json'))) return resolve(model);
  const checkpoint = await exists(join(model, 'config.json'));
  const encoder = checkpoint ? undefined : options.encoder;
  const name = [
    basename(resolve(model)),
    precision,
    prefillPrecision,
    kv === 'floats' ? undefined : `kv-${kv}`,
    encoder,
  ]
    .filter(Boolean)
    .join('-');
  const to = resolve(data, 'bundles', name);
  const made = await readFile(join(to, 'manifest.json'), 'utf8').catch(() => '');
  if (made.includes(`"${FORMAT}"`)) return to; // one of an earlier version is made again
  const command = [checkpoint ? 'export' : 'synth', '--llm', model, '--to', to, '--precision', precision];
  if (prefillPrecision) command.push('--prefill-precision', prefillPrecision);
  if (kv !== 'floats') command.push('--kv', kv);
  if (encoder) command.push('--encoder', encoder);
  await runCli(command, signal);
  return to;
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );
