/** The tokenizer of the model that ships, with a chat template, which that model does not have. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { Tokenizer } from '../../services/lib/text/tokenizer.ts';
import { readTokenizerConfig } from '../../services/lib/text/tokenizer-json.ts';

/** ChatML with other tokens, which refuses roles that it does not know. */
const TEMPLATE = `{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('there is no role ' ~ message.role) -}}
{%- endif -%}
{{- bos_token ~ message.role ~ ': ' ~ message.content ~ eos_token ~ '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token ~ 'assistant: ' -}}{%- endif -%}`;

export async function tokenizerWithChat(): Promise<Tokenizer> {
  const json = JSON.parse(await readFile(join(PACKAGE_ROOT, 'models/tiny-coder/tokenizer.json'), 'utf8'));
  const chat_template = [{ name: 'default', template: TEMPLATE }];
  const config = { bos_token: '<|fim_pad|>', eos_token: { content: '<|endoftext|>' }, chat_template };
  return new Tokenizer(json, readTokenizerConfig(JSON.stringify(config), 'tokenizer_config.json'));
}
