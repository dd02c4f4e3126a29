/** Runs `bench speculation`: one system with speculation, one without. */
import { run } from '../harness/run.ts';
import { assertNoUrl, prepareModel, systemSettings } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { COLOCATED, DISAGGREGATED } from '../system/deployment.ts';
import { startDeployment } from '../system/system.ts';
import type { SpeculationOptions } from './command.ts';
import { measureTrace, type SpeculationResult, type TraceResult } from './measure.ts';
import { SPECULATION } from './report.ts';

export async function runSpeculation(options: SpeculationOptions): Promise<Artifact<SpeculationResult>> {
  assertNoUrl(options, 'speculation', 'a system with speculation beside one without');
  const prepared = await prepareModel(onlyModel(options), options);
  const { model, prompts } = prepared;
  const deployment = options.mode === 'colocated' ? COLOCATED : DISAGGREGATED;
  const start = (speculation: 'auto' | 'off') => {
    const flags = { gateway: { speculation, typedThrough: 'off' }, decode: { speculation } };
    return startDeployment(deployment, systemSettings(options, prepared, flags));
  };
  return run(SPECULATION, options, { models: [model], settings: { ...options } }, async (onProgress) => {
    onProgress('starting both systems');
    const plain = await start('off');
    try {
      const speculative = await start('auto');
      try {
        const traces: TraceResult[] = [];
        for (const trace of options.traces) {
          const onPair = (pair: number) => onProgress(`${trace}: pair ${pair} of ${options.pairs}`);
          const systems = { plain, speculative };
          traces.push(await measureTrace(trace, systems, prompts, model.tokenizer, options, onPair));
        }
        return { model: model.name, traces };
      } finally {
        await speculative.close();
      }
    } finally {
      await plain.close();
    }
  });
}
