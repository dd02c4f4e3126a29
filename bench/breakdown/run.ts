/** `bench breakdown` on both deployments, each beside the bare engine that its prompts are computed by. */
import { ENGINE_SETTINGS } from '../../services/lib/engine/settings.ts';
import { omitSettings } from '../../services/lib/process/config.ts';
import { PROMPT_SETTINGS } from '../../services/prefill/settings.ts';
import { loadConfig } from '../../services/settings.ts';
import { BareEngine } from '../engine/bare.ts';
import { run } from '../harness/run.ts';
import {
  type BenchOptions,
  prepareModel,
  type SystemUnderTest,
  systemSettings,
  withSystems,
} from '../harness/systems.ts';
import type { Artifact } from '../report/artifact.ts';
import { parseCores } from '../system/cores.ts';
import type { ContextMode } from '../system/prompts.ts';
import { BOTH } from '../system/system.ts';
import { type BreakdownResult, type BreakdownRun, measureBreakdown } from './measure.ts';

const CONTEXTS: readonly ContextMode[] = ['compressed', 'text', 'off'];

export async function runBreakdown(
  options: BenchOptions,
  modelName: string,
  breakdown: { readonly codeTokens: number; readonly outputTokens: number; readonly requests: number },
): Promise<Artifact<BreakdownResult>> {
  const prepared = await prepareModel(modelName, options);
  const { model, prompts } = prepared;
  const settings = { ...systemSettings(options), ...breakdown, pinning: 'shared' };
  const plan = { deployments: BOTH, pinning: 'shared' } as const;
  return run(options, { bench: 'breakdown', models: [model], settings }, (onProgress) =>
    withSystems(options, prepared, plan, async (systems) => {
      const runs: BreakdownRun[] = [];
      for (const system of systems) {
        onProgress(`${system.name}, the bare engine loads`);
        const bare = await startBare(options, model.bundle, system);
        try {
          for (const context of CONTEXTS) {
            onProgress(`${system.name}, ${context}`);
            const how = { ...breakdown, context, timeoutMs: options.timeoutMs };
            runs.push(await measureBreakdown(system.url, system.name, prompts, how, bare));
          }
        } finally {
          bare?.stop();
        }
      }
      return { model: model.name, promptTokens: breakdown.codeTokens, outputTokens: breakdown.outputTokens, runs };
    }),
  );
}

/** As the deployment's prefill worker is set up; none for a system that ran already: how it computes is not known here. */
async function startBare(
  { cores, capacity }: BenchOptions,
  model: string,
  { deployment }: SystemUnderTest,
): Promise<BareEngine | undefined> {
  if (deployment === undefined) return undefined;
  // The workers of withSystems see no variables of ours, and so have these defaults.
  const {
    spin,
    prepacked,
    prefillChunkTokens: chunk,
  } = loadConfig(omitSettings({ ...ENGINE_SETTINGS, ...PROMPT_SETTINGS }, ['model']), {}, {});
  const weights = deployment.mode === 'colocated' ? 'decode' : 'prefill';
  return BareEngine.start({ model, weights, cores: parseCores(cores), capacity, chunk, spin, prepacked });
}
