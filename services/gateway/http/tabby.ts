/**
 * Tabby's routes. Its completions share `POST /v1/completions` with OpenAI's (completions.ts); its health and the
 * events of completions, which any client may report, are here.
 */
import os from 'node:os';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { BUILD_INFO } from '../../lib/process/build-info.ts';
import { ServingError } from '../../lib/process/errors.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { Acceptance } from '../completion/acceptance.ts';
import type { ChoiceDelta } from '../completion/choice.ts';
import type { AnswerWords } from './answer.ts';
import type { CompletionCall } from './completion-call.ts';
import type { BodyOf } from './editor-body.ts';
import { STARTED } from './models.ts';
import { SSE_UNTIL_DONE } from './sse.ts';
import { eventBody, type TabbyForm } from './tabby-body.ts';

export interface TabbyParts {
  /** Name of the model in the API. */
  readonly modelName: string;
  readonly tokenizer: Tokenizer;
  readonly acceptance: Acceptance;
  readonly readiness: { readonly problem: string | undefined };
  /** Devices that the workers compute on. */
  readonly devices: () => readonly string[];
}

export function addTabbyRoutes(app: FastifyInstance, { modelName, acceptance, readiness, devices }: TabbyParts): void {
  const tags = ['Tabby'];
  const health = () => {
    const { problem } = readiness;
    if (problem !== undefined) throw new ServingError('no_worker', problem);
    const cpus = os.cpus();
    return {
      model: modelName,
      device: devices()[0] ?? 'cpu',
      arch: process.arch,
      cpu_info: cpus[0]?.model ?? 'unknown',
      cpu_count: cpus.length,
      cuda_devices: devices().filter((name) => /cuda|nvidia/i.test(name)),
      version: {
        build_date: new Date(STARTED * 1000).toISOString().slice(0, 10),
        build_timestamp: new Date(STARTED * 1000).toISOString(),
        git_sha: BUILD_INFO.commit ?? '',
        git_describe: `v${BUILD_INFO.version}`,
      },
    };
  };
  const schema = { summary: 'whether completions are served, and by what', tags };
  app.get('/v1/health', { schema }, async () => health());
  app.post('/v1/health', { schema }, async () => health()); // older clients
  app.post('/v1/events', {
    schema: { body: eventBody, summary: 'counts what became of a completion', tags },
    handler: async ({ body, identity }: FastifyRequest<{ Body: BodyOf<typeof eventBody> }>, reply) => {
      acceptance.count(identity.tenant, body.completion_id, body.choice_index, body.type);
      return reply.code(200).send();
    },
  });
}

/** The words of Tabby. @param form what the client wants of the answer. */
export function tabbyWords(
  { record, scope }: CompletionCall,
  form: TabbyForm,
  { tokenizer }: Pick<TabbyParts, 'tokenizer'>,
): AnswerWords {
  const snippets = () => [
    ...form.snippets,
    // The text of a compressed chunk does not stand in the prompt: what is known of it is where it stands.
    ...(record.context?.chunks ?? [])
      .filter(({ overlay }) => overlay === undefined)
      .map(({ path, startLine, endLine, score }) => ({
        filepath: path,
        body: '',
        score,
        start_line: startLine,
        end_line: endLine,
      })),
  ];
  const debugData = ([first]: readonly ChoiceDelta[]) => ({
    ...(form.returnSnippets && { snippets: snippets() }),
    ...(form.returnPrompt && { prompt: tokenizer.decode(first?.promptTokenIds ?? []) }),
  });
  const whole = (choices: readonly ChoiceDelta[]) => ({
    id: scope.id,
    choices: choices.map(({ text }, index) => ({ index, text })),
    ...((form.returnPrompt || form.returnSnippets) && { debug_data: debugData(choices) }),
  });
  return { format: SSE_UNTIL_DONE, whole, part: (delta) => [whole([delta])] };
}
