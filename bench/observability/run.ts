/** Runs `bench observability`: one system with traces and scrapes, one without. */
import { run } from '../harness/run.ts';
import { assertNoUrl, prepareModel, systemSettings } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { startDeployment } from '../system/system.ts';
import { receiveTraces } from './collector.ts';
import type { ObservabilityOptions } from './command.ts';
import { measurePairs, type ObservabilityResult, traceOfReplay } from './measure.ts';
import { OBSERVABILITY } from './report.ts';

/** Two decoders: while one is killed, the other one goes on. */
const DEPLOYMENT = { mode: 'disaggregated', prefill: 1, decode: 2 } as const;

export async function runObservability(options: ObservabilityOptions): Promise<Artifact<ObservabilityResult>> {
  assertNoUrl(options, 'observability', 'a system with traces beside one without');
  const prepared = await prepareModel(onlyModel(options), options);
  const { model, prompts } = prepared;
  const settings = systemSettings(options, prepared);
  return run(OBSERVABILITY, options, { models: [model], settings: { ...options } }, async (onProgress) => {
    onProgress('starting both systems');
    const collector = await receiveTraces();
    const off = await startDeployment(DEPLOYMENT, settings);
    try {
      const on = await withVariables(
        { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' },
        () => startDeployment(DEPLOYMENT, settings),
      );
      try {
        const { pairs: count, promptTokens, outputTokens } = options;
        const measured = await measurePairs(on, off, prompts, options, (i) => onProgress(`pair ${i} of ${count}`));
        const spans = collector.spans.length;
        onProgress('a trace with a lost worker');
        const trace = await traceOfReplay(on, collector, prompts, options);
        return {
          model: model.name,
          promptTokens,
          outputTokens,
          ...measured,
          spansPerRequest: spans / (count + 1),
          trace,
        };
      } finally {
        await on.close();
      }
    } finally {
      await off.close();
      collector.close();
    }
  });
}

/** Runs `start` while the environment has these variables, which the processes that it starts inherit. */
async function withVariables<T>(variables: Record<string, string>, start: () => Promise<T>): Promise<T> {
  Object.assign(process.env, variables);
  try {
    return await start();
  } finally {
    for (const name of Object.keys(variables)) delete process.env[name];
  }
}
