/**
 * Ollama's routes, for plugins that know only Ollama: Zed, Continue, plugins of JetBrains' editors. Durations are in
 * ns, and an error is a text.
 */
import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { PromptFormat } from '../../lib/text/prompt-format.ts';
import type { AnswerWords } from './answer.ts';
import type { CompletionCall } from './completion-call.ts';
import type { Translated } from './editor-body.ts';
import { addEditorRoute, type EditorParts } from './editor-route.ts';
import type { ErrorBody } from './errors.ts';
import { assertModel, STARTED } from './models.ts';
import { generateBody, type OllamaForm, showBody } from './ollama-body.ts';
import { JSON_LINES } from './sse.ts';

export interface OllamaParts extends EditorParts {
  readonly format: Pick<PromptFormat, 'frame'>;
}

/** The release of Ollama whose API this is: clients ask whether it is new enough, and 0.6.4 brought `capabilities`. */
const OLLAMA_VERSION = '0.6.4';
/** Ollama's name for the version of a model that is meant where none is named. */
const TAG = ':latest';
const NS_PER_MS = 1e6;

const wordsFailure = ({ error }: ErrorBody) => ({ error: error.message });

export function addOllamaRoutes(app: FastifyInstance, parts: OllamaParts): void {
  const { modelName } = parts;
  addEditorRoute(
    app,
    {
      url: '/api/generate',
      body: generateBody,
      summary: 'completes a prompt, or fills in the middle where there is a suffix',
      tag: 'Ollama',
      words: (call) => ollamaWords(call, call.request.model ?? modelName),
      adapt(request: Translated<OllamaForm>) {
        const model = withoutTag(request.model ?? modelName);
        if (request.form.isLoad) assertModel(model, modelName); // nothing else looks at it
        return { ...request, model };
      },
      instead: ({ isLoad }) => {
        if (!isLoad) return undefined;
        return {
          model: modelName,
          created_at: new Date().toISOString(),
          response: '',
          done: true,
          done_reason: 'load',
        };
      },
      wordsFailure,
    },
    parts,
  );
  addDescriptions(app, parts);
}

/** The name of a model without its tag, which stands before or behind the repository that the name may end with. */
const withoutTag = (model: string) => model.replace(/:latest(?=@|$)/g, '');

/** The words of Ollama: https://github.com/ollama/ollama/blob/main/docs/api.md */
function ollamaWords({ record }: CompletionCall, model: string): AnswerWords {
  const startMs = performance.now();
  const line = (response: string, done: boolean) => ({ model, created_at: new Date().toISOString(), response, done });
  const end = (response: string, reason: string | null) => ({
    ...line(response, true),
    done_reason: reason ?? 'stop',
    total_duration: nanoseconds(performance.now() - startMs),
    load_duration: 0, // the model is always loaded
    prompt_eval_count: record.usage.promptTokens,
    prompt_eval_duration: nanoseconds(record.prefillMs),
    eval_count: record.usage.completionTokens,
    eval_duration: nanoseconds(record.decodeMs),
  });
  return {
    format: JSON_LINES,
    whole: ([choice]) => end(choice!.text, choice!.finishReason),
    part: ({ text, finishReason }) => [
      ...(text === '' ? [] : [line(text, false)]),
      ...(finishReason === null ? [] : [end('', finishReason)]),
    ],
    failure: wordsFailure,
  };
}

const nanoseconds = (ms: number) => Math.round(ms * NS_PER_MS);

/** What there is to be asked: one model. */
function addDescriptions(app: FastifyInstance, { modelName, fingerprint, capacity, format }: OllamaParts): void {
  const config = { wordsFailure };
  const tags = ['Ollama'];
  const details = {
    parent_model: '',
    format: 'onnx',
    family: 'llavacode',
    families: ['llavacode'],
    parameter_size: '',
    quantization_level: '',
  };
  const modified_at = new Date(STARTED * 1000).toISOString();
  const name = modelName + TAG;
  app.get(
    '/api/version',
    { config, schema: { summary: 'the release of Ollama whose API this is', tags } },
    async () => ({
      version: OLLAMA_VERSION,
    }),
  );
  app.get('/api/tags', { config, schema: { summary: 'the served model', tags } }, async () => ({
    models: [{ name, model: name, modified_at, size: 0, digest: fingerprint, details }],
  }));
  app.post('/api/show', {
    config,
    schema: { body: showBody, summary: 'what the model can do', tags },
    handler: async ({ body }: FastifyRequest<{ Body: { model: string } }>) => {
      assertModel(withoutTag(body.model), modelName);
      return {
        details,
        modified_at,
        template: '{{ .Prompt }}',
        model_info: { 'general.architecture': 'llavacode', 'llavacode.context_length': capacity() ?? 0 },
        capabilities: format.frame ? ['completion', 'insert'] : ['completion'],
      };
    },
  });
}
