/**
 * `/livez`, `/readyz`, `/health`, `/metrics` and `/version`, for operators, their load balancers and load generators.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { BUILD_INFO } from '../../lib/process/build-info.ts';
import { exposition } from '../../lib/process/metrics.ts';
import { type ApiKeys, NO_KEYS } from '../tenants/api-keys.ts';

export interface ProbeParts {
  /** Name of the model in the API. */
  readonly modelName: string;
  /** `problem` is the reason why completions would fail now; undefined when they would not. */
  readonly readiness: { readonly problem: string | undefined };
  readonly keys: ApiKeys;
  /** Brings gauges up to date. */
  readonly beforeScrape: () => void;
}

/** How llama.cpp says that it is not ready: its clients wait as long as they read this. */
const LLAMA_CPP_NOT_READY = { error: { code: 503, message: 'Loading model', type: 'unavailable_error' } };

export function addProbeRoutes(app: FastifyInstance, { modelName, readiness, keys, beforeScrape }: ProbeParts): void {
  const tags = ['operation'];
  const open = (summary: string) => ({ config: { needsNoKey: true }, schema: { summary, tags } });
  app.get('/livez', open('whether the process lives'), async () => ({ status: 'live' }));
  const whenReady = (status: string, inOtherWords?: object) => async (_: FastifyRequest, reply: FastifyReply) => {
    const { problem } = readiness;
    if (problem === undefined) return { status };
    // The reason may name workers: where keys are needed, a client without one does not learn it. The log has it.
    return reply.code(503).send({ status: 'not ready', ...(keys === NO_KEYS && { reason: problem }), ...inOtherWords });
  };
  app.get('/readyz', open('whether completions are served'), whenReady('ready'));
  // The route of vLLM and llama.cpp, which load generators and charts made for those ask; `ok` is llama.cpp's word.
  app.get('/health', open('the same, as vLLM and llama.cpp call it'), whenReady('ok', LLAMA_CPP_NOT_READY));
  app.get('/version', { schema: { summary: 'the version that runs', tags } }, async () => ({
    ...BUILD_INFO,
    model: modelName,
  }));
  const scraped = {
    config: { isScraped: true },
    schema: { summary: 'metrics for Prometheus, over all tenants', tags },
  };
  app.get('/metrics', scraped, async ({ headers }, reply) => {
    beforeScrape();
    const { text, type } = await exposition(headers.accept);
    return reply.type(type).send(text);
  });
}
