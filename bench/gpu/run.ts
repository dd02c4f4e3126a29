/** Runs `bench gpu`: measures, packs, or prints what fits. */
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { readConfig } from '../../services/lib/process/config.ts';
import { run } from '../harness/run.ts';
import type { GpuOptions } from './command.ts';
import { measureGpu, sizesOf } from './measure.ts';
import { packBench } from './pack.ts';
import { GPU } from './report.ts';

/**
 * @param given the options that the user gave.
 * @throws ServingError config_invalid for a provider that there is not; those of {@link packBench}.
 */
export async function runGpu(options: GpuOptions, given: Readonly<Record<string, unknown>>): Promise<void> {
  if (options.pack !== undefined) return packBench(options.pack);
  const { provider } = ENGINE_SETTINGS;
  readConfig({ provider }, { flags: { provider: options.provider }, env: {}, known: { provider } });
  const sizes = sizesOf(options, given);
  const plan = { models: [], settings: { ...options, ...sizes } };
  await run(GPU, options, plan, (onProgress, save) => measureGpu(options, sizes, onProgress, save));
}
