/** Runs `bench breakdown` on both deployments, each beside the bare engine that computes its prompts. */
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { omitSettings } from '../../services/lib/process/config.ts';
import { PROMPT_SETTINGS } from '../../services/prefill/settings.ts';
import { loadConfig } from '../../services/settings.ts';
import { BareEngine } from '../engine/bare.ts';
import { run } from '../harness/run.ts';
import { prepareModel, type SystemUnderTest, withSystems } from '../harness/systems.ts';
import { onlyModel } from '../options.ts';
import type { Artifact } from '../report/artifact.ts';
import { CONTEXTS } from '../system/context.ts';
import { BOTH } from '../system/deployment.ts';
import type { BreakdownOptions } from './command.ts';
import { type BreakdownResult, type BreakdownRun, measureBreakdown } from './measure.ts';
import { BREAKDOWN } from './report.ts';

const PLAN = { deployments: BOTH, pinning: 'shared' } as const;

export async function runBreakdown(options: BreakdownOptions): Promise<Artifact<BreakdownResult>> {
  const prepared = await prepareModel(onlyModel(options), options);
  const { model, prompts } = prepared;
  const { codeTokens, outputTokens } = options;
  const plan = { models: [model], settings: { ...options, pinning: PLAN.pinning } };
  return run(BREAKDOWN, options, plan, (onProgress) =>
    withSystems(options, prepared, PLAN, async (systems) => {
      const runs: BreakdownRun[] = [];
      for (const system of systems) {
        onProgress(`${system.name}: loading the bare engine`);
        const bare = await startBare(options, model.bundle, system);
        try {
          for (const context of CONTEXTS) {
            onProgress(`${system.name}, ${context}`);
            runs.push(await measureBreakdown(system.url, system.name, prompts, { ...options, context }, bare));
          }
        } finally {
          await bare?.stop();
        }
      }
      return { model: model.name, promptTokens: codeTokens, outputTokens, runs };
    }),
  );
}

/**
 * Starts the bare engine as the prefill worker of the deployment is set up.
 * @returns undefined for a system that was running before, because its setup is not known here.
 */
async function startBare(
  { cores, capacity }: BreakdownOptions,
  model: string,
  { deployment }: SystemUnderTest,
): Promise<BareEngine | undefined> {
  if (deployment === undefined) return undefined;
  // Workers of withSystems do not see the environment of the bench: they have the defaults, and so has the bare engine.
  const config = loadConfig(omitSettings({ ...ENGINE_SETTINGS, ...PROMPT_SETTINGS }, ['model']), {}, {});
  return BareEngine.start({
    model,
    weights: deployment.mode === 'colocated' ? 'decode' : 'prefill',
    cores,
    capacity,
    chunk: config.prefillChunkTokens,
    spin: config.spin,
    prepacked: config.prepacked,
  });
}
