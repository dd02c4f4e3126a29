/**
 * What a gateway makes of an engine that predicts right: the recorded session is typed at one gateway per variant, all
 * at the same time, since a scripted engine computes nothing. Each gateway has workers of its own.
 */

import { startGateway } from '../../services/gateway/service.ts';
import { GATEWAY_SETTINGS } from '../../services/gateway/settings.ts';
import { NO_KEYS } from '../../services/gateway/tenants/api-keys.ts';
import { createLogger } from '../../services/lib/process/log.ts';
import { choosePromptFormat } from '../../services/lib/text/prompt-format.ts';
import { loadConfig } from '../../services/settings.ts';
import type { BenchModel } from '../system/model.ts';
import type { TypingOptions } from './command.ts';
import { measureTyping, type PredictedRun, type PredictedVariant } from './measure.ts';
import { ScriptedEngine } from './scripted-engine.ts';
import type { Session } from './session.ts';

type PredictedOptions = Pick<
  TypingOptions,
  'debounceMs' | 'outputTokens' | 'timeoutMs' | 'pace' | 'prefillMs' | 'stepMs' | 'lingerMs'
>;

export async function measurePredicted(
  model: BenchModel,
  session: Session,
  options: PredictedOptions,
): Promise<PredictedRun[]> {
  const { lingerMs } = options;
  const variants: PredictedVariant[] = [
    { stopAt: undefined, typedThrough: 'off', lingerMs: 0 },
    { stopAt: 'statement', typedThrough: 'off', lingerMs: 0 },
    { stopAt: undefined, typedThrough: 'session', lingerMs: 0 },
    { stopAt: undefined, typedThrough: 'session', lingerMs },
    { stopAt: 'statement', typedThrough: 'session', lingerMs: 0 },
    { stopAt: 'statement', typedThrough: 'session', lingerMs },
  ];
  return Promise.all(variants.map((variant) => measureVariant(model, session, options, variant)));
}

async function measureVariant(
  { tokenizer, manifest }: BenchModel,
  session: Session,
  options: PredictedOptions,
  variant: PredictedVariant,
): Promise<PredictedRun> {
  const { prefillMs, stepMs } = options;
  const { fingerprint } = manifest;
  const { eosIds, hidden } = manifest.llm.spec;
  const last = session.keystrokes.at(-1)!;
  const script = last.before + last.after;
  const format = choosePromptFormat(tokenizer, undefined, eosIds);
  const engine = new ScriptedEngine({ tokenizer, format, fingerprint, script, prefillMs, stepMs });
  const draining = new AbortController();
  const { typedThrough, lingerMs, stopAt } = variant;
  const workers = { prefillWorkers: '127.0.0.1:1', decodeWorkers: '127.0.0.1:2' };
  const needed = { model: 'scripted', ...workers, port: '0', typedThrough, lingerMs: `${lingerMs}` };
  const gateway = await startGateway(loadConfig(GATEWAY_SETTINGS, needed, {}), {
    modelName: 'scripted',
    fingerprint,
    contextFingerprint: undefined,
    hidden,
    tokenizer,
    eosIds,
    retrieval: undefined,
    store: undefined,
    indexer: undefined,
    keys: NO_KEYS,
    connectPrefill: () => engine.prefill,
    connectDecode: () => engine.decode,
    draining: draining.signal,
    log: createLogger('gateway', 'silent'),
  });
  try {
    await gateway.ready;
    const [prompts, steps] = [engine.prompts, engine.steps]; // of the trial that makes it ready
    const asked = { ...options, repo: '', context: 'off', promptOrder: 'psm', reuse: true, stopAt } as const;
    const url = `http://${gateway.address}`;
    const run = await measureTyping(url, 'scripted', session, asked);
    return {
      ...variant,
      pauses: run.requests,
      answered: run.answered,
      accepted: run.records.filter(({ outcome, outputTokens }) => outcome === 'ok' && outputTokens > 1).length,
      prompts: engine.prompts - prompts,
      steps: engine.steps - steps,
    };
  } finally {
    draining.abort();
    await gateway.close();
  }
}
