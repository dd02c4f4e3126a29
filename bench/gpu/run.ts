/** Runs `bench gpu`: measures, packs, or prints what fits. It ends with exit code 1 if a part failed. */
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { readConfig } from '../../services/lib/process/config.ts';
import { run } from '../harness/run.ts';
import type { GpuOptions } from './command.ts';
import { fitsTable } from './fits.ts';
import { measureGpu, sizesOf } from './measure.ts';
import { packBench } from './pack.ts';
import { GPU } from './report.ts';

/** What --fits shows unless --model and --precision say otherwise. */
const PUBLISHED = ['0.5b', '1.5b', '3b', '7b', '14b', '32b'].map((size) => `qwen2.5-coder-${size}`);
const FOR_CARDS = ['fp16', 'int8-fp16', 'int4-fp16'];

/**
 * @param given the options that the user gave.
 * @throws ServingError config_invalid for a provider that there is not; those of {@link packBench}.
 */
export async function runGpu(options: GpuOptions, given: Readonly<Record<string, unknown>>): Promise<void> {
  if (options.pack !== undefined) return packBench(options.pack);
  if (options.fits) {
    const models = given['model'] === undefined ? PUBLISHED : options.model;
    const precisions = given['precision'] === undefined ? FOR_CARDS : options.precision;
    process.stdout.write(`${fitsTable(models, precisions)}\n`);
    return;
  }
  const { provider } = ENGINE_SETTINGS;
  readConfig({ provider }, { flags: { provider: options.provider }, env: {}, known: { provider } });
  const sizes = sizesOf(options, given);
  const plan = { models: [], settings: { ...options, ...sizes } };
  const { result } = await run(GPU, options, plan, (onProgress, save) => measureGpu(options, sizes, onProgress, save));
  if (result.parts.some(({ status }) => status === 'failed')) process.exitCode = 1;
}
