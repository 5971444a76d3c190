"""The doctor on the page: `doctor_box` takes a model or a file, `doctor_report` shows what is wrong with it."""
