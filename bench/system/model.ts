/** The models that a bench measures: bundles, checkpoints, or the names of published shapes. */
import { stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { type Manifest, openBundle } from '../../services/lib/model/bundle/bundle.ts';
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
}

/**
 * Opens a bundle. It is made first, once, if `model` is a folder of a checkpoint (by `llavacode export`) or the name of
 * a published shape (by `llavacode synth`: seeded random weights, as fast as the real ones).
 */
export async function openModel(model: string, options: ModelOptions): Promise<BenchModel> {
  const bundle = await bundleOf(model, options);
  const { manifest, tokenizerDir } = await openBundle(bundle);
  return { name: manifest.name, bundle, manifest, tokenizer: await loadTokenizer(tokenizerDir) };
}

async function bundleOf(model: string, { data, precision, prefillPrecision }: ModelOptions): Promise<string> {
  if (await exists(join(model, 'manifest.json'))) return resolve(model);
  const checkpoint = await exists(join(model, 'config.json'));
  const name = [basename(resolve(model)), precision, ...(prefillPrecision ? [prefillPrecision] : [])].join('-');
  const to = resolve(data, 'bundles', name);
  if (await exists(join(to, 'manifest.json'))) return to;
  const prefill = prefillPrecision ? ['--prefill-precision', prefillPrecision] : [];
  await runCli([checkpoint ? 'export' : 'synth', '--llm', model, '--to', to, '--precision', precision, ...prefill]);
  return to;
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );
