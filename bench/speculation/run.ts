/** Runs `bench speculation`: one system with speculation, one without. */
import { type OnProgress, run, type Save } from '../harness/run.ts';
import { assertNoUrl, type PreparedModel, prepareModel, systemSettings } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { COLOCATED, DISAGGREGATED } from '../system/deployment.ts';
import { startDeployment } from '../system/system.ts';
import type { SpeculationOptions } from './command.ts';
import { type IdentityResult, measureIdentity } from './identity.ts';
import { measureTrace, type Pair, type TraceResult } from './measure.ts';
import { SPECULATION } from './report.ts';
import type { SpeculationResult } from './result.ts';

/**
 * Measures speed and equality. Sets the exit code to 1 where the answer to a request of --identity differs.
 * @throws ServingError with the code of a request that failed; what starting a system throws.
 */
export async function runSpeculation(options: SpeculationOptions): Promise<Artifact<SpeculationResult>> {
  assertNoUrl(options, 'speculation', 'a system with speculation beside one without');
  const prepared = await prepareModel(onlyModel(options), options);
  const { model } = prepared;
  const deployment = options.mode === 'colocated' ? COLOCATED : DISAGGREGATED;
  const start = (speculation: 'auto' | 'off') => {
    const flags = { gateway: { speculation, typedThrough: 'off' }, decode: { speculation } };
    return startDeployment(deployment, systemSettings(options, prepared, flags));
  };
  const artifact = await run(
    SPECULATION,
    options,
    { models: [model], settings: { ...options } },
    async (onProgress, save) => {
      onProgress('starting both systems');
      const plain = await start('off');
      try {
        const speculative = await start('auto');
        try {
          return await measure({ plain, speculative }, prepared, options, onProgress, save);
        } finally {
          await speculative.close();
        }
      } finally {
        await plain.close();
      }
    },
  );
  const { identity } = artifact.result;
  if (identity !== undefined && identity.differences.length > 0) process.exitCode = 1;
  return artifact;
}

async function measure(
  systems: Pair,
  { model, prompts }: PreparedModel,
  options: SpeculationOptions,
  onProgress: OnProgress,
  save: Save<SpeculationResult>,
): Promise<SpeculationResult> {
  if (options.identity > 0) {
    const onDone = (done: number, different: number) =>
      onProgress(`${done} of ${options.identity} requests, ${different} with other answers`);
    const resultOf = (identity: IdentityResult) => ({ model: model.name, traces: [], identity });
    const keep = (identity: IdentityResult) => save(resultOf(identity));
    return resultOf(await measureIdentity(systems, prompts, model.tokenizer, options, onDone, keep));
  }
  const traces: TraceResult[] = [];
  for (const trace of options.traces) {
    const onPair = (pair: number) => onProgress(`${trace}: pair ${pair} of ${options.pairs}`);
    traces.push(await measureTrace(trace, systems, prompts, model.tokenizer, options, onPair));
  }
  return { model: model.name, traces };
}
