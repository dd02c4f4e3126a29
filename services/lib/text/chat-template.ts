/** Renders a chat as the prompt that its model was trained on. This file is the only importer of @huggingface/jinja. */
import { Template } from '@huggingface/jinja';
import { ServingError } from '../process/errors.ts';
import type { ChatForm } from './tokenizer.ts';

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

export class ChatTemplate {
  readonly #form: ChatForm;
  /** undefined as long as nobody has asked: many models are served for completions alone. */
  #template: Template | undefined;

  constructor(form: ChatForm) {
    this.#form = form;
  }

  /**
   * The prompt for the next answer of a chat. It holds the names of special tokens, and begins with all that the model
   * wants at the beginning.
   * @throws ServingError chat_unsupported where the model has no template, or one that cannot be read; invalid_request
   *   for a chat that the template refuses, in its words.
   */
  render(messages: readonly ChatMessage[]): string {
    const template = this.#read();
    const { bosToken, eosToken } = this.#form;
    try {
      const values = { messages, bos_token: bosToken, eos_token: eosToken, add_generation_prompt: true };
      return template.render(values);
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      const message = `the chat template of this model refuses the messages: ${why}`;
      throw new ServingError('invalid_request', message, { param: 'messages', cause });
    }
  }

  #read(): Template {
    const { template } = this.#form;
    if (template === undefined) {
      throw new ServingError('chat_unsupported', 'this model has no chat template in its tokenizer_config.json');
    }
    try {
      this.#template ??= new Template(template);
      return this.#template;
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new ServingError('chat_unsupported', `the chat template of this model cannot be read: ${why}`, { cause });
    }
  }
}
