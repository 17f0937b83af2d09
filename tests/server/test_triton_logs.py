"""Reading from Triton's log why it did not start; the lines are the real server's, 2.51."""

from __future__ import annotations

from twinspire_server.triton.logs import last_lines, reasons, taken_service

_NOISE = """W1121 03:44:09.904187 25336 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1121 03:44:09.904331 25336 server.cc:241] "CudaDriverHelper has not been initialized."
I1121 03:44:09.905454 25336 model_lifecycle.cc:472] "loading: echo:1"
"""
_END = """+-------+---------+-----------------------+
| echo  | 1       | UNAVAILABLE: Internal |
+-------+---------+-----------------------+

error: creating server: Internal - failed to load all models
"""


def test_a_python_models_error_is_told_once_without_its_place() -> None:
    """Escapes are undone; the same error in other lines, and where in the code it was raised, are left out."""
    said = r"BundleError: engine \"image.onnx\":\n   sha256 differs\n\nAt:\n  /r/echo/1/model.py(6): initialize\n"
    log = f"""{_NOISE}I1121 03:44:10.018695 25336 pb_stub.cc:366] "Failed to initialize Python stub: {said}"
E1121 03:44:10.247073 25336 backend_model.cc:692] "ERROR: Failed to create instance: {said}"
E1121 03:44:10.247185 25336 model_lifecycle.cc:642] "failed to load 'echo' version 1: Internal: {said}"
{_END}"""
    assert reasons(log) == [
        "failed to load 'echo' version 1: Internal: BundleError: engine \"image.onnx\":\n   sha256 differs"
    ]


def test_a_config_that_does_not_parse_is_told_with_the_parsers_words() -> None:
    """Which model, and what the parser says."""
    log = f"""{_NOISE}[libprotobuf ERROR /tmp/text_format.cc:337] Error parsing text-format: 1:44: no
E1121 03:44:11.281570 25365 model_repository_manager.cc:1460] "Poll failed for model directory 'bad': failed to read"
{_END}"""
    assert reasons(log) == [
        "Poll failed for model directory 'bad': failed to read",
        "Error parsing text-format: 1:44: no",
    ]


def test_what_is_no_models_fault_is_told() -> None:
    """Errors before and beside the models: the loader's, the server's."""
    assert reasons("/b/stub: error while loading shared libraries: libpython3.11.so.1.0: no such file\n") == [
        "/b/stub: error while loading shared libraries: libpython3.11.so.1.0: no such file"
    ]
    assert reasons(f"{_NOISE}error: creating server: Internal - failed to stat file /r\n") == [
        "error: creating server: Internal - failed to stat file /r"
    ]


def test_a_log_without_errors() -> None:
    """No reason is made up: the last lines stand for it, tables left out."""
    assert reasons(_NOISE) == []
    assert last_lines(_NOISE)[-1].endswith('"loading: echo:1"')
    (line,) = last_lines("+--+\n| a |\n\n")
    assert "empty" in line


def test_the_service_whose_port_is_taken() -> None:
    """Each of the three lines names its service."""
    for service in ("HTTP", "GRPC", "Metrics"):
        line = (
            f"E1 main.cc:1] \"failed to start {service} service: Unavailable - Socket '127.0.0.1:1' already in use \""
        )
        assert taken_service(f"{_NOISE}{line}\n") == service.lower()
    assert taken_service(_NOISE) is None


def test_an_abort_is_told_by_its_exception() -> None:
    """Type and `what()` of the exception, once, and no stack; a signal alone is told without its frames."""
    stack = " 0# 0x0000558F5876152D in /b/tritonserver\n17# 0x00007F3CD85278EC in /lib/libc.so.6\n"
    abort = "terminate called after throwing an instance of 'pybind11::error_already_set'\n"
    what = "  what():  ValueError: negative dimensions are not allowed\n"
    assert reasons(f"{_NOISE}{abort}{what}Signal (6) received.\n{stack}") == [
        "pybind11::error_already_set: ValueError: negative dimensions are not allowed"
    ]
    assert "error_already_set" in reasons(f"{_NOISE}{abort}Signal (6) received.\n{stack}")[0]
    assert last_lines(f"{_NOISE}Signal (11) received.\n{stack}")[-1] == "Signal (11) received."
