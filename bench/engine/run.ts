/** Runs `bench engine` and `bench handoff`. */
import { WIRE_TYPES, type WireType } from '../../services/lib/kv/wire.ts';
import { run } from '../harness/run.ts';
import { openModel } from '../system/model.ts';
import { measureAgainst } from './against.ts';
import type { EngineBenchOptions, HandoffOptions } from './command.ts';
import { measureHandoff } from './handoff.ts';
import { measureEngine, STEPS } from './measure.ts';
import { ENGINE, ENGINE_AGAINST, HANDOFF } from './report.ts';

export async function runEngine(options: EngineBenchOptions): Promise<void> {
  const { against } = options;
  if (against !== undefined) {
    const plan = { models: [], settings: options };
    await run(ENGINE_AGAINST, options, plan, (onProgress) => measureAgainst(against, options, onProgress));
    return;
  }
  const model = await openModel(options.model, options);
  const plan = { models: [model], settings: { ...options, steps: STEPS } };
  await run(ENGINE, options, plan, (onProgress) => measureEngine(model.bundle, options, onProgress));
}

export async function runHandoff(options: HandoffOptions): Promise<void> {
  const types: readonly WireType[] = [...WIRE_TYPES, 'int8-channel'];
  const plan = { models: [], settings: { ...options, types } };
  await run(HANDOFF, options, plan, async () => ({ cells: await measureHandoff(options, types) }));
}
